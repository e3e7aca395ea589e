"""Small values that the server hands out and takes back: signed with a secret of the data folder, and kept nowhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)
N_SIGNATURE = 16  # bytes: nobody guesses one of 2^128, and the address stays short enough for a mail
LONGEST = 2000  # characters


def sealed(secret: bytes, purpose: str, value: msgspec.Struct) -> str:
    """The value and its signature, in letters that fit an address. `purpose` keeps one kind from passing for
    another."""
    content = msgspec.msgpack.encode(value)
    return _written(_signature(secret, purpose, content) + content)


def opened(secret: bytes, purpose: str, text: str, kind: type[T]) -> T | None:
    """The value of a text that `sealed` made for this purpose; None for any other text."""
    if len(text) > LONGEST:
        return None
    try:
        both = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return None
    # The decoder passes over what is no letter of its own. Each value has one writing only, since rates are counted by
    # it.
    if _written(both) != text:
        return None
    signature, content = both[:N_SIGNATURE], both[N_SIGNATURE:]
    # In constant time: a comparison that stops at the first wrong byte would tell how much of a guess was right.
    if not hmac.compare_digest(signature, _signature(secret, purpose, content)):
        return None
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except msgspec.ValidationError:  # another version's
        return None


def _written(both: bytes) -> str:
    return base64.urlsafe_b64encode(both).decode().rstrip("=")


def _signature(secret: bytes, purpose: str, content: bytes) -> bytes:
    signed = purpose.encode() + b"\0" + content
    return hmac.new(secret, signed, hashlib.sha256).digest()[:N_SIGNATURE]

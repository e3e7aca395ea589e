"""Tokens that stand for a key for an hour, in the form (JWT, RFC 7519) in which the SDK reads who it is.

Signed with HMAC-SHA256 under a secret of the data folder. A key that was revoked makes its tokens worthless, since it
is looked up anew with each request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

from loreloop.store.rows import KeyRow

LIFETIME_SECONDS = 3600
BEGINNING = "eyJ"  # how the JSON of a head begins in base64
HEAD = {"alg": "HS256", "typ": "JWT"}
ORGANIZATION = "loreloop"


class _Claims(msgspec.Struct, frozen=True):
    """`sub` is the key's id; times in whole seconds since the epoch. The SDK wants an e-mail address, which no key
    has."""

    sub: str
    exp: int
    iat: int
    org_id: str = ORGANIZATION
    email: str = ""


def mint(secret: bytes, key: KeyRow, now: float) -> str:
    """A token for the key; it ends with the key where that expires before."""
    expires = min(now + LIFETIME_SECONDS, key.expires or float("inf"))
    claims = _Claims(sub=key.id, exp=int(expires), iat=int(now))
    signed = f"{_text(msgspec.json.encode(HEAD))}.{_text(msgspec.json.encode(claims))}"
    return f"{signed}.{_text(_signature(secret, signed))}"


def key_id_of(secret: bytes, token: str, now: float) -> str | None:
    """The id of the key that a token stands for; None where it is not ours or has expired."""
    signed, _, signature = token.rpartition(".")
    wanted = _text(_signature(secret, signed))
    # In constant time: a comparison that stops early would tell how much of a guess was right.
    if not hmac.compare_digest(wanted.encode(), signature.encode()):
        return None
    try:
        claims = msgspec.json.decode(_bytes(signed.partition(".")[2]), type=_Claims)
    except (msgspec.DecodeError, binascii.Error):
        return None
    return claims.sub if now < claims.exp else None


def _signature(secret: bytes, signed: str) -> bytes:
    # With a purpose of its own, so that nothing else that is signed with the secret can pass for a token.
    return hmac.new(hmac.digest(secret, b"tokens", hashlib.sha256), signed.encode(), hashlib.sha256).digest()


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

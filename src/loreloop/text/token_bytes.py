"""The bytes that single tokens stand for, also those that hold a part of a character only.

A vocabulary spells bytes in characters: byte-level ones with a visible character a byte, those of SentencePiece with a
mark for a space and a name such as `<0x0A>` for a byte. Decoding a token alone would lose both.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

from loreloop.protocol.byte_letters import BYTE_LETTERS

_BYTE_OF = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
_BYTE_NAME = re.compile("<0x([0-9A-F]{2})>")
_UNDERSTOOD = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


class TokenBytes:
    """Knows from a tokenizer's decoder how its vocabulary spells; a kind it does not know is decoded token by token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
        steps = _steps(tokenizer)
        kinds = {step["type"] for step in steps}
        self.is_byte_level = "ByteLevel" in kinds
        self.is_pieces = bool(kinds) and kinds <= _UNDERSTOOD
        self.has_byte_names = "ByteFallback" in kinds
        self.replaced = [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]
        for step in steps:
            if step["type"] == "Replace":
                self.replaced.append((step["pattern"].get("String"), step["content"]))
        self.is_pieces &= all(old for old, _ in self.replaced)  # not a regular expression

    def of(self, token: int) -> bytes:
        """None at all for an id without a token."""
        if token in self.added:
            return self.added[token].encode()
        piece = self.tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self.is_byte_level and all(sign in _BYTE_OF for sign in piece):
            return bytes(_BYTE_OF[sign] for sign in piece)
        if self.is_pieces:
            return self._of_piece(piece)
        # An unknown kind of vocabulary: right for whole characters, and lossy for parts of one.
        return str(self.tokenizer.decode([token], skip_special_tokens=False)).encode()

    def _of_piece(self, piece: str) -> bytes:
        if self.has_byte_names and (named := _BYTE_NAME.fullmatch(piece)):
            return bytes([int(named[1], 16)])
        for old, new in self.replaced:
            piece = piece.replace(old, new)
        return piece.encode()


def _steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The decoder's steps, one behind the other."""
    decoder = tokenizer.decoder
    settings = json.loads(decoder.__getstate__()) if decoder is not None else {}
    return settings["decoders"] if settings.get("type") == "Sequence" else [settings] if settings else []

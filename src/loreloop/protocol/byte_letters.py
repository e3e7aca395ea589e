"""The printable letter that byte-level vocabularies write for each byte."""

from __future__ import annotations


def _letters() -> tuple[str, ...]:
    # The order of the others decides their letters, and is the one of GPT-2's published vocabulary.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256))


BYTE_LETTERS = _letters()  # by byte: itself where it can be printed, else one from 256 on

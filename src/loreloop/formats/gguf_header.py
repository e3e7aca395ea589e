"""What a GGUF file claims to hold, against its size, before a library believes it: a few bytes may name a list of 2^64
entries, which would be read for ever.

Knows the layout of the head alone, and no meaning of its entries.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from loreloop.protocol.errors import BadRequest

SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # by the type's number
STRING, ARRAY = 8, 9
MOST_NESTED, MOST_DIMENSIONS = 4, 8
MAGIC = b"GGUF"


def check_header(file: Path) -> None:
    """BadRequest where the head does not fit into its file. Each entry takes bytes, so this ends with the file."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Head(content, file).walk()
    except (OSError, ValueError) as error:  # the second: an empty file
        raise BadRequest(f"{file} cannot be read as a GGUF file: {error}.") from None


@dataclass
class _Head:
    content: mmap.mmap
    file: Path
    at: int = 0
    order: str = "<"

    def walk(self) -> None:
        if self.content[:4] != MAGIC:
            raise BadRequest(f"{self.file} cannot be read as a GGUF file: it does not begin as one.")
        self._skip(4)
        version = self._number("I")
        self.order = "<" if version & 0xFFFF else ">"  # as the library tells files of other machines
        n_tensors, n_entries = self._number("Q"), self._number("Q")
        for _ in range(n_entries):
            self._text()
            self._value(self._number("I"), 0)
        for _ in range(n_tensors):
            self._text()
            n_dimensions = self._number("I")
            if n_dimensions > MOST_DIMENSIONS:
                self._refuse(f"a tensor of {n_dimensions} dimensions")
            self._skip(8 * n_dimensions + 4 + 8)  # its shape, its type and its place

    def _value(self, kind: int, depth: int) -> None:
        if kind in SCALAR_BYTES:
            self._skip(SCALAR_BYTES[kind])
        elif kind == STRING:
            self._text()
        elif kind == ARRAY and depth < MOST_NESTED:
            inner, n_values = self._number("I"), self._number("Q")
            if inner in SCALAR_BYTES:
                self._skip(SCALAR_BYTES[inner] * n_values)
                return
            for _ in range(n_values):
                self._value(inner, depth + 1)
        else:
            self._refuse(f"an entry of the type {kind}")

    def _text(self) -> None:
        self._skip(self._number("Q"))

    def _number(self, form: str) -> int:
        start = self.at
        self._skip(struct.calcsize(self.order + form))
        return int(struct.unpack_from(self.order + form, self.content, start)[0])

    def _skip(self, n_bytes: int) -> None:
        start, self.at = self.at, self.at + n_bytes
        if self.at > len(self.content):
            self._refuse(f"{n_bytes} bytes behind byte {start}")

    def _refuse(self, claim: str) -> None:
        raise BadRequest(
            f"{self.file} cannot be read as a GGUF file: its head claims to hold {claim}, which cannot be."
        )

"""Which part of an adapter's matrix lies somewhere, as slices: so it can be copied to and fro, and read from a file,
without the rest.

Legend: E experts, O outputs (rows), I inputs (columns).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Factor = Literal["a", "b"]
Index = tuple[slice, ...]


@dataclass(frozen=True)
class Matrix:
    """One matrix of an adapter, over experts a stack of them: the A of a site, all parts in one, or the B of a part."""

    layer: int
    site: str
    factor: Factor
    part: int = 0


@dataclass(frozen=True)
class Piece:
    """Numbers that lie at `mine` in the part of a matrix, and at `whole` in all of it."""

    mine: Index
    whole: Index


@dataclass(frozen=True)
class Region:
    """Experts, rows and columns of a matrix; None: all of them. Rows may be several runs, in this order."""

    experts: slice | None = None
    rows: tuple[slice, ...] | None = None
    columns: slice | None = None

    def also(self, other: Region) -> Region:
        """What is left when both cut, each along dimensions of its own."""
        rows = other.rows if self.rows is None else self.rows
        return Region(self.experts or other.experts, rows, self.columns or other.columns)

    def pieces(self, *, stacked: bool) -> Iterator[Piece]:
        """The part in pieces that are slices of both; `stacked` matrices have a dimension of experts."""
        every = slice(None)
        start = 0
        for rows in (every,) if self.rows is None else self.rows:
            stop = None if self.rows is None else start + rows.stop - rows.start
            piece = Piece((slice(start, stop), every), (rows, self.columns or every))
            if stacked:
                piece = Piece((every, *piece.mine), (self.experts or every, *piece.whole))
            yield piece
            start = stop or 0

    def take(self, whole: Tensor, mine: Tensor) -> None:
        """Fills the part from all of a matrix."""
        for piece in self.pieces(stacked=whole.ndim > 2):
            mine[piece.mine].copy_(whole[piece.whole])

    def put(self, mine: Tensor, whole: Tensor) -> None:
        """Writes the part to its place in all of a matrix."""
        for piece in self.pieces(stacked=whole.ndim > 2):
            whole[piece.whole].copy_(mine[piece.mine])


WHOLE = Region()

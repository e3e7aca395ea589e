"""Which part of a weight a process holds, found without the weight: what cuts it is tried on an outline of it.

A cut of a weight is written for tensors (`parallel/cut.py`): it takes some rows and some columns. Given an outline,
which has a shape and no numbers, it leaves behind which rows and columns these are, and only those are read. What does
more than that (zeroes, sums) leaves no trace; its weight is read whole and cut afterwards.

Legend: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loreloop.model.packed_weights import PackedWeight

# The share of a weight that a process holds, by its role; None where it holds none of it.
Held = Callable[[str, Tensor | PackedWeight], Tensor | PackedWeight | None]


class Outline(Tensor):
    """A weight's shape, and which of its rows and columns are still there; `rows` is None once that is not known."""

    rows: Tensor | None
    columns: slice

    @staticmethod
    def of(shape: Sequence[int]) -> Outline:
        """All of a weight."""
        outline = torch.empty(tuple(shape), device="meta").as_subclass(Outline)
        outline.rows, outline.columns = torch.arange(shape[0]), slice(0, shape[1] if len(shape) > 1 else 1)
        return outline

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        """Does what was asked for to the shape, and notes what that leaves of rows and columns."""
        with torch._C.DisableTorchFunctionSubclass():
            given = function(*arguments, **(named or {}))
        whole = arguments[0] if arguments else None
        if not isinstance(given, Tensor) or not isinstance(whole, Outline):
            return given
        outline = given.as_subclass(Outline)
        outline.rows, outline.columns = None, whole.columns
        if function is Tensor.contiguous:
            outline.rows = whole.rows
        elif function is Tensor.__getitem__ and whole.rows is not None:
            _note(whole, whole.rows, arguments[1], outline)
        return outline


def _note(whole: Outline, rows: Tensor, index: Any, outline: Outline) -> None:
    """What an index of rows, or of all rows and a range of columns, leaves."""
    if isinstance(index, slice | Tensor):
        outline.rows = rows[index]
    elif isinstance(index, tuple) and len(index) == 2 and all(isinstance(each, slice) for each in index):
        start, stop, step = index[1].indices(whole.columns.stop - whole.columns.start)
        if step == 1:
            first = whole.columns.start
            outline.rows, outline.columns = rows[index[0]], slice(first + start, first + stop)


@dataclass(frozen=True)
class Run:
    """Rows `source` of a published tensor that follow one another, and the place where they lie in the part."""

    source: slice
    place: slice


@dataclass(frozen=True)
class Part:
    """What a process holds of a weight: rows in this order, and of each these columns."""

    rows: Tensor
    columns: slice

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """Of the part of a weight with this shape."""
        return (len(self.rows), *((self.columns.stop - self.columns.start,) if len(whole) > 1 else ()))

    def runs(self, piece: slice) -> Iterator[Run]:
        """Those of the part's rows that come from a published tensor, which fills the rows `piece` of the weight."""
        at = ((self.rows >= piece.start) & (self.rows < piece.stop)).nonzero().flatten()
        if not len(at):
            return
        # A run ends where the next row, or its place, is not the next one.
        breaks = ((self.rows[at].diff() != 1) | (at.diff() != 1)).nonzero().flatten() + 1
        for run in at.tensor_split(breaks):
            first, n = int(self.rows[run[0]]) - piece.start, len(run)
            yield Run(slice(first, first + n), slice(int(run[0]), int(run[0]) + n))


def part_of(held: Held, role: str, shape: Sequence[int]) -> Part | None:
    """What is held of a weight that is not there yet; None where that cannot be told by rows and columns. Whether
    anything is held at all is asked by `is_held`."""
    outline = held(role, Outline.of(shape))
    if isinstance(outline, Outline) and outline.rows is not None:
        return Part(outline.rows, outline.columns)
    return None


def is_held(held: Held, role: str, shape: Sequence[int]) -> bool:
    """Whether a process holds any of a weight."""
    return held(role, Outline.of(shape)) is not None

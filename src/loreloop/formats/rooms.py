"""Where the weights of a decoder go while a folder is read: a room for each, of which a process keeps what it holds.

A part that can be told beforehand is all that is ever allocated and read (`held_parts.py`). Another weight is whole
until its last piece has come, and is cut then, so that at any time few weights are whole. Knows no files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loreloop.formats.held_parts import Held, Part, is_held, part_of
from loreloop.formats.stored_tensors import Stored
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.weights import Piece, Weight

AnyWeight = Tensor | PackedWeight


@dataclass
class Room:
    """Of one weight. `make` allocates it whole; `held` cuts it then, and is None where all of it is kept; `part` is
    what is kept, where that is known. `n_missing` counts the pieces that have not come. What is not wanted is not read:
    nothing is kept of it, or a matrix without rows."""

    weight: Weight
    make: Callable[[], AnyWeight]
    held: Held | None
    part: Part | None
    n_missing: int
    whole: AnyWeight | None = None
    is_wanted: bool = True

    def of(self, piece: Piece) -> AnyWeight:
        """The place of a piece in the whole weight."""
        if self.whole is None:
            self.whole = self.make()
        return self.whole[piece.rows]


@dataclass
class Rooms:
    """By role. `weights` has those that are complete, as far as this process holds them."""

    held: Held | None
    dtype: torch.dtype
    device: torch.device
    weights: dict[str, AnyWeight] = field(default_factory=dict)

    def room(self, weight: Weight, make: Callable[[], AnyWeight], *, is_packed: bool) -> Room:
        """For a weight; `make` allocates it whole, packed or not."""
        room = Room(weight=weight, make=make, held=self.held, part=None, n_missing=len(weight.pieces))
        if self.held is None:
            # Allocated at once, as it will be needed whatever comes; also what is never filled is found out so.
            room.whole = self.weights[weight.role] = make()
            return room
        room.is_wanted = is_held(self.held, weight.role, weight.shape)
        part = part_of(self.held, weight.role, weight.shape) if room.is_wanted else None
        is_empty = part is not None and not len(part.rows)
        # Codes lie in tiles, and are cut when all are there; but of nothing there are none.
        if part is not None and (is_empty or not is_packed):
            dtype = torch.float32 if weight.fp32 else self.dtype
            room.part = part
            self.weights[weight.role] = torch.empty(part.shape(weight.shape), dtype=dtype, device=self.device)
        room.is_wanted = room.is_wanted and not is_empty
        return room

    def read(self, room: Room, piece: Piece, stored: Stored, check: Callable[[Tensor], None]) -> None:
        """Fills in what this process holds of a piece, and reads nothing else; `check` looks at each tensor that is
        read."""
        if not room.is_wanted or room.part is None:
            return
        for run in room.part.runs(piece.rows):
            tensor = stored.part(run.source, room.part.columns)
            check(tensor)
            self._mine(room)[run.place].copy_(tensor)

    def copy(self, room: Room, piece: Piece, tensor: Tensor) -> None:
        """Fills in what this process holds of a piece that has been read."""
        if not room.is_wanted:
            return
        if room.part is None:
            room.of(piece).copy_(tensor)
            self.filled(room)
            return
        for run in room.part.runs(piece.rows):
            rows = tensor[run.source]
            self._mine(room)[run.place].copy_(rows if rows.dim() == 1 else rows[:, room.part.columns])

    def filled(self, room: Room) -> None:
        """A piece has come into the whole weight; after the last one the weight is cut."""
        room.n_missing -= 1
        if room.n_missing or room.held is None or not room.is_wanted:
            return
        assert room.whole is not None
        mine = room.held(room.weight.role, room.whole)
        assert mine is not None, room.weight.role
        if isinstance(mine, Tensor) and isinstance(room.whole, PackedWeight):
            mine = mine.to(self.dtype)  # unpacked, where its codes cannot be cut
        self.weights[room.weight.role] = mine
        room.whole = None

    def _mine(self, room: Room) -> Tensor:
        mine = self.weights[room.weight.role]
        assert isinstance(mine, Tensor)
        return mine

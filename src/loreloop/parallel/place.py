"""Where a process stands in a mesh, and what is said between the processes of it.

A single process stands in a mesh of one, where nothing has to be said. Knows no models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from loreloop.parallel.mesh import AXES, Axis, Mesh
from loreloop.protocol.errors import LoreloopError, OutOfService, disk_trouble, outcome_of

T = TypeVar("T")
RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Place:
    """`rank` counts from 0; `group` is of all ranks and None in a mesh of one. `groups` has, for each axis with several
    ranks, the group of those that differ from this one along it alone."""

    mesh: Mesh = field(default_factory=Mesh)
    rank: int = 0
    group: dist.ProcessGroup | None = None
    groups: Mapping[Axis, dist.ProcessGroup] = field(default_factory=dict)

    @property
    def n_ranks(self) -> int:
        """Of the whole mesh."""
        return self.mesh.n_ranks

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that speaks to others and writes files."""
        return self.rank == 0

    def along(self, axis: Axis) -> int:
        """Where this rank stands along an axis, from 0."""
        return self.mesh.at(self.rank)[axis]

    def total(self, number: float) -> float:
        """The sum over ranks, in double precision."""
        if self.group is None:
            return number
        sum_1 = torch.tensor([number], dtype=torch.float64)
        dist.all_reduce(sum_1, group=self.group)
        return float(sum_1)

    def gathered(self, numbers: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Every rank's numbers, by rank; all are flat, and rank r has `sizes[r]` of them."""
        if self.group is None:
            return [numbers]
        # The wire takes vectors of one length only.
        padded = numbers.new_zeros(max(sizes))
        padded[: len(numbers)] = numbers
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded, group=self.group)
        return [each[:size] for each, size in zip(found, sizes, strict=True)]

    def told(self, message: bytes = b"") -> bytes:
        """What the first rank says, on every rank."""
        if self.group is None:
            return message
        n_1 = torch.tensor([len(message)])
        dist.broadcast(n_1, 0, group=self.group)
        data = torch.empty(int(n_1), dtype=torch.uint8)
        if self.is_first and message:
            data = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self.group)
        return data.numpy().tobytes()

    def by_first(self, work: Callable[[], T], kind: type[T]) -> T:
        """What `work` gives on the first rank, which alone does it; `kind` is a type that goes over the wire. Its error
        there, and OutOfService elsewhere, where it fails."""
        if not self.is_first:
            if said := self.told():
                return msgspec.msgpack.decode(said, type=kind)
            raise OutOfService("The first process of this engine could not do it; see the log.", RETRY_SECONDS)
        outcome = outcome_of(work)
        failed = isinstance(outcome, Exception)
        # Whatever comes of it: the others wait for the word.
        self.told(b"" if failed else msgspec.msgpack.encode(outcome))
        return self._given(outcome)

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work` gives here, if it gives something on every rank; for whatever may fail on one of them alone, such
        as reading and writing. Its own error where it failed here, OutOfService where it failed on others only."""
        if self.group is None:
            return work()
        outcome = outcome_of(work)
        n_failed = self.total(float(isinstance(outcome, Exception)))
        given = self._given(outcome)
        if n_failed:
            raise OutOfService(
                f"{n_failed:.0f} of {self.n_ranks} processes of this engine could not do it; see the log.",
                RETRY_SECONDS,
            )
        return given

    def _given(self, outcome: T | Exception) -> T:
        """Raises what was an error. Trouble of the system with a file is told apart from a fault of one process, after
        which the processes would no longer be alike."""
        if not isinstance(outcome, Exception):
            return outcome
        if self.group is not None and not isinstance(outcome, LoreloopError):
            if trouble := disk_trouble(outcome):
                raise trouble from outcome
            if isinstance(outcome, OSError):
                raise OutOfService(f"A file could not be read or written: {outcome}.", RETRY_SECONDS) from outcome
        raise outcome


ALONE = Place()


def place_of(mesh: Mesh) -> Place:
    """The place of this process in a mesh whose processes have met (`torch.distributed`). Every one of them must call
    it."""
    shape = tuple(mesh.sizes[axis] for axis in AXES)
    laid_out = init_device_mesh("cpu", shape, mesh_dim_names=AXES)
    groups = {axis: laid_out.get_group(axis) for axis in AXES if mesh.sizes[axis] > 1}
    return Place(mesh, dist.get_rank(), dist.group.WORLD, groups)

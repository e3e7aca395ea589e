"""Where a process stands in a mesh, and what is said between the processes of it.

A single process stands in a mesh of one, where nothing has to be said. Knows no models.
"""

from __future__ import annotations

import logging
import os
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TypeVar

import msgspec
import torch
from torch import Tensor
from torch import distributed as dist

from loreloop.parallel.mesh import AXES, Axis, Mesh
from loreloop.parallel.outbox import Outbox
from loreloop.protocol.errors import LoreloopError, OutOfService, disk_trouble, outcome_of

LOG = logging.getLogger("loreloop.engine")
T = TypeVar("T")
RETRY_SECONDS = 5.0
GO_ON = b"+"  # what the first rank says where the others wait for nothing more than its word
WORDS = 0  # the lane of what the first rank says
TO_FIRST = 15  # that of numbers for it; between them are those of stages


@dataclass(frozen=True)
class Place:
    """`rank` counts from 0; `group` is of all ranks and None in a mesh of one. `groups` has, for each axis with several
    ranks, the group of those that differ from this one along it alone."""

    mesh: Mesh = field(default_factory=Mesh)
    rank: int = 0
    group: dist.ProcessGroup | None = None
    groups: Mapping[Axis, dist.ProcessGroup] = field(default_factory=dict)
    outbox: Outbox = field(default_factory=Outbox)

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
        _heard(lambda: dist.all_reduce(sum_1, group=self.group))
        return float(sum_1)

    def gathered(self, numbers: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Every rank's numbers, by rank; all are flat, and rank r has `sizes[r]` of them."""
        if self.group is None:
            return [numbers]
        # The wire takes vectors of one length only.
        padded = numbers.new_zeros(max(sizes))
        padded[: len(numbers)] = numbers
        found = [torch.empty_like(padded) for _ in sizes]
        _heard(lambda: dist.all_gather(found, padded, group=self.group))
        return [each[:size] for each, size in zip(found, sizes, strict=True)]

    def send_first(self, numbers: Tensor) -> None:
        """Numbers for the first rank, which takes them (`received`); waits until they have left."""
        # As bytes, which every backend sends whatever they stand for.
        _heard(lambda: dist.send(numbers.view(torch.uint8), group=self.group, group_dst=0, tag=TO_FIRST))

    def received(self, rank: int, into: Tensor) -> Tensor:
        """On the first rank, the next numbers that another sends to it; as many as `into` has, which they fill."""
        _heard(lambda: dist.recv(into.view(torch.uint8), group=self.group, group_src=rank, tag=TO_FIRST))
        return into

    def told(self, message: bytes = b"") -> bytes:
        """What the first rank says, on every rank. That one does not wait until the others have heard it: they may be
        behind with what it has said before."""
        if self.group is None:
            return message
        if self.is_first:
            # The length goes first, and nothing of no length goes over the wire.
            parts = [torch.tensor([len(message)]), *([bytes_of(message)] if message else [])]
            _heard(partial(self._say, parts))
            return message
        n_1 = torch.zeros(1, dtype=torch.int64)
        _heard(lambda: dist.recv(n_1, group=self.group, group_src=0, tag=WORDS))
        data = torch.empty(int(n_1), dtype=torch.uint8)
        if len(data):
            _heard(lambda: dist.recv(data, group=self.group, group_src=0, tag=WORDS))
        return data.numpy().tobytes()

    def _say(self, parts: Sequence[Tensor]) -> None:
        assert self.group is not None
        for rank in range(1, self.n_ranks):
            for part in parts:
                self.outbox.send(part, rank, self.group, WORDS)

    def by_first(self, work: Callable[[], T], kind: type[T]) -> T:
        """What `work` gives on the first rank, which alone does it; `kind` is a type that goes over the wire. Its error
        there, and OutOfService elsewhere, where it fails."""
        if not self.is_first:
            return msgspec.msgpack.decode(self._word(), type=kind)
        outcome = outcome_of(work)
        failed = isinstance(outcome, Exception)
        # Whatever comes of it: the others wait for the word.
        self.told(b"" if failed else msgspec.msgpack.encode(outcome))
        return self._given(outcome)

    def go_on(self) -> None:
        """Amid the work of `by_first`: a step that all ranks take together begins when the first has all that it needs
        for it. OutOfService on the others where its work has failed before; then no further word of that comes."""
        if self.is_first:
            self.told(GO_ON)
            # What is still on its way would stand in memory behind what is large, and keep it from being given back.
            _heard(self.outbox.wait)
        else:
            self._word()

    def together(self, work: Callable[[], object]) -> None:
        """Does what no rank can leave out without the others waiting for it for ever; where it fails, this process
        ends, and the engine with it."""
        _heard(work)

    def _word(self) -> bytes:
        """What the first rank says next, on the others. OutOfService where that is that its work has failed."""
        if said := self.told():
            return said
        raise OutOfService("The first process of this engine could not do it; see the log.", RETRY_SECONDS)

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work` gives here, if it gives something on every rank; for whatever may fail on one of them alone, such
        as reading and writing. Its error where all have failed with the same, and OutOfService on every rank where only
        some have, or with different ones: what ranks do upon an error is alike as well."""
        if self.group is None:
            return work()
        # Errors as they would be raised, so that they can be compared before any rank raises one.
        outcome = outcome_of(partial(self._given, outcome_of(work)))
        digest = _digest(outcome)
        by_rank = [int(digest_1) for digest_1 in self.gathered(torch.tensor([digest]), [1] * self.n_ranks)]
        # A fault of one process is raised as it is: that process ends, and the engine with it.
        is_fault = isinstance(outcome, Exception) and not isinstance(outcome, LoreloopError)
        if is_fault or by_rank == [digest] * self.n_ranks:
            return self._given(outcome)
        if digest:
            LOG.error("process %d could not do it: %s", self.rank, outcome)
        raise OutOfService(
            f"{sum(map(bool, by_rank))} of {self.n_ranks} processes of this engine could not do it; see the log.",
            RETRY_SECONDS,
        )

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


def _digest(outcome: object) -> int:
    """What tells errors of several processes apart; 0 for none."""
    return (
        1 + zlib.crc32(repr((type(outcome).__name__, str(outcome))).encode()) if isinstance(outcome, Exception) else 0
    )


def bytes_of(message: bytes) -> Tensor:
    """A message, which must not be empty, as it goes over the wire."""
    # Copied, for a tensor may be written and a message not.
    return torch.frombuffer(bytearray(message), dtype=torch.uint8)


def _heard(speak: Callable[[], object]) -> None:
    """Speaks with the other processes. Where one of them is lost, this process ends at once: whoever asked for the work
    must not be told that it failed, as the engine is started again whole and does it then."""
    outcome = outcome_of(speak)
    if isinstance(outcome, Exception):
        LOG.error("the engine ends: another process of it does not answer (%s)", outcome)
        sys.stderr.flush()
        os._exit(1)


ALONE = Place()


def place_of(mesh: Mesh, patience: timedelta | None = None) -> Place:
    """The place of this process in a mesh whose processes have met (`torch.distributed`). Every one of them must call
    it. `patience` is how long the ranks of an axis wait for one another; None: as long as torch does."""
    groups: dict[Axis, dist.ProcessGroup] = {}
    for axis in AXES:
        lines = mesh.lines(axis)
        if len(lines) == 1:
            assert dist.group.WORLD is not None
            groups[axis] = dist.group.WORLD
        elif mesh.sizes[axis] > 1:
            # Each group is told: by itself it would not wait as long as that of all ranks does.
            groups[axis], _ = dist.new_subgroups_by_enumeration(lines, timeout=patience)
    return Place(mesh, dist.get_rank(), dist.group.WORLD, groups)

"""What the stages of a pipeline say to one another. A decoder that is not cut by layers is one stage and says nothing.

What is sent goes out in the background, so that a stage works on while the next one still computes; it is kept until it
has left. Each lane is a queue of its own between two stages: sampling may pass by a training pass that pauses.

Legend: T rows, D model width.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor
from torch import distributed as dist

from loreloop.model.spec import DecoderSpec
from loreloop.parallel.outbox import Outbox
from loreloop.parallel.pipeline_cut import head_cost, layer_cost, stage_layers
from loreloop.parallel.place import Place, bytes_of
from loreloop.parallel.timetable import Timetable


class Lane(IntEnum):
    """Queues between stages. Those below are the first rank's."""

    TRAINING = 1
    SAMPLING = 2
    DRAWS = 3


@dataclass(frozen=True)
class Stage:
    """Stage `at` of those whose forward passes take `units` of a layer's each; `group` is of the ranks that stand at
    the same place of their stages, by stage."""

    at: int = 0
    units: tuple[int, ...] = (1,)
    group: dist.ProcessGroup | None = None
    n_bytes: Counter[Lane] = field(default_factory=Counter)  # that this rank has sent to other stages
    outbox: Outbox = field(default_factory=Outbox)

    @property
    def n_stages(self) -> int:
        """How many there are."""
        return len(self.units)

    @property
    def is_first(self) -> bool:
        """Whether tokens enter here."""
        return self.at == 0

    @property
    def is_last(self) -> bool:
        """Whether the head lies here."""
        return self.at == self.n_stages - 1

    def timetable(self, n_batches: int, *, backward: bool) -> Timetable:
        """That of so many micro-batches."""
        return Timetable(self.units, n_batches, backward)

    def send_on(self, x_TD: Tensor, lane: Lane) -> None:
        """Hidden states to the next stage. The tensor must not be changed afterwards."""
        self._send(x_TD, self.at + 1, lane)

    def send_back(self, dx_TD: Tensor) -> None:
        """Their gradient to the stage before. The tensor must not be changed afterwards."""
        self._send(dx_TD, self.at - 1, Lane.TRAINING)

    def received(self, n_rows: int, like: Tensor, lane: Lane) -> Tensor:
        """What the stage before sends on, (T, D) fp32; `like` has its width and device."""
        return self._receive(like.new_empty(n_rows, like.shape[-1], dtype=torch.float32), self.at - 1, lane)

    def returned(self, like_TD: Tensor) -> Tensor:
        """What the next stage sends back, in the shape of what was sent on."""
        return self._receive(torch.empty_like(like_TD, dtype=torch.float32), self.at + 1, Lane.TRAINING)

    def tell(self, message: bytes) -> None:
        """Says something to all other stages, who each must hear it (`heard`)."""
        for stage in range(self.n_stages):
            if stage != self.at:
                self._send(torch.tensor([len(message)]), stage, Lane.DRAWS)
                self._send(bytes_of(message), stage, Lane.DRAWS)

    def heard(self) -> bytes:
        """The next thing that the last stage tells."""
        n_1 = self._receive(torch.zeros(1, dtype=torch.int64), self.n_stages - 1, Lane.DRAWS)
        data = torch.empty(int(n_1), dtype=torch.uint8)
        return self._receive(data, self.n_stages - 1, Lane.DRAWS).numpy().tobytes()

    def all_say(self, message: bytes) -> list[bytes]:
        """What each stage says, by stage. All must call it at the same place."""
        if self.group is None:
            return [message]
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in self.units]
        dist.all_gather(lengths, torch.tensor([len(message)]), group=self.group)
        # The wire takes vectors of one length only.
        longest = max(int(length) for length in lengths)
        padded = bytes_of(message.ljust(longest, b"\0"))
        found = [torch.empty_like(padded) for _ in self.units]
        dist.all_gather(found, padded, group=self.group)
        return [each[: int(n)].numpy().tobytes() for each, n in zip(found, lengths, strict=True)]

    def _send(self, numbers: Tensor, stage: int, lane: Lane) -> None:
        assert self.group is not None
        numbers = numbers.contiguous()
        self.n_bytes[lane] += numbers.nbytes
        self.outbox.send(numbers, stage, self.group, lane)

    def _receive(self, into: Tensor, stage: int, lane: Lane) -> Tensor:
        assert self.group is not None
        dist.recv(into, group=self.group, group_src=stage, tag=lane)
        return into


def stage_of(spec: DecoderSpec, place: Place) -> Stage:
    """The stage of a place, for the whole decoder `spec`."""
    n_stages = place.mesh.pp
    if n_stages == 1:
        return Stage()
    return Stage(place.along("pp"), stage_units(spec, n_stages), place.groups["pp"])


def stage_units(spec: DecoderSpec, n_stages: int) -> tuple[int, ...]:
    """How long each stage's forward pass takes, in layers; the head counts as those that cost as much."""
    costs = [layer_cost(spec, layer) for layer in range(spec.n_layers)]
    lengths = [len(layers) for layers in stage_layers(spec, n_stages)]
    lengths[-1] += round(head_cost(spec) * len(costs) / sum(costs))
    return tuple(lengths)

"""When each stage of a pipeline works on which micro-batch: one forward, one backward, by turns (1F1B).

A stage begins with as many forward passes as stages follow it, then goes back with one micro-batch for each that it
takes on, so that it never keeps the activations of more than the stages that are left. Source: PipeDream-Flush,
Narayanan et al. 2021 (arXiv 2006.09503). Time is counted in units of a layer's forward pass; a backward pass takes two.
Plain arithmetic, the same on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

BACKWARD_UNITS = 2


@dataclass(frozen=True)
class Slot:
    """A stage works from `start` to `stop` on a micro-batch, forwards or backwards."""

    batch: int
    backward: bool
    start: int
    stop: int


@dataclass(frozen=True)
class Unreceived:
    """What has been sent to a stage and not been taken: the micro-batches of activations, and those of gradients."""

    forward: tuple[int, ...]
    backward: tuple[int, ...]


@dataclass(frozen=True)
class Timetable:
    """The work of `len(units)` stages on `n_batches` micro-batches; a forward pass takes `units` of each."""

    units: tuple[int, ...]
    n_batches: int
    backward: bool

    @cached_property
    def slots(self) -> list[list[Slot]]:
        """By stage, in order."""
        orders = [self._order(stage) for stage in range(len(self.units))]
        placed: list[list[Slot]] = [[] for _ in orders]
        stops: dict[tuple[int, int, bool], int] = {}
        # Each round places what has all that it waits for; at least one stage always has.
        while any(len(done) < len(order) for done, order in zip(placed, orders, strict=True)):
            for stage, (done, order) in enumerate(zip(placed, orders, strict=True)):
                while len(done) < len(order):
                    batch, back = order[len(done)]
                    ready = self._ready(stops, stage, batch, back)
                    if ready is None:
                        break
                    start = max(ready, done[-1].stop if done else 0)
                    stop = start + self.units[stage] * (BACKWARD_UNITS if back else 1)
                    done.append(Slot(batch, back, start, stop))
                    stops[stage, batch, back] = stop
        return placed

    @property
    def end(self) -> int:
        """When the last stage to finish has finished."""
        return max((slot.stop for slots in self.slots for slot in slots), default=0)

    def unreceived(self, stage: int, now: int) -> Unreceived:
        """What has been sent to a stage by `now` and is taken at `now` or later. What a slot gives is sent before its
        stop, and what it needs is taken after its start."""

        def waiting(sender: int, *, back: bool) -> tuple[int, ...]:
            if not 0 <= sender < len(self.units):
                return ()
            sent = {slot.batch for slot in self.slots[sender] if slot.backward == back and slot.stop <= now}
            return tuple(
                s.batch for s in self.slots[stage] if s.backward == back and s.start >= now and s.batch in sent
            )

        return Unreceived(waiting(stage - 1, back=False), waiting(stage + 1, back=True))

    def _order(self, stage: int) -> Sequence[tuple[int, bool]]:
        n = self.n_batches
        if not self.backward:
            return [(batch, False) for batch in range(n)]
        ahead = min(n, len(self.units) - 1 - stage)
        order = [(batch, False) for batch in range(ahead)]
        for batch in range(ahead, n):
            order += [(batch, False), (batch - ahead, True)]
        return order + [(batch, True) for batch in range(n - ahead, n)]

    def _ready(self, stops: dict[tuple[int, int, bool], int], stage: int, batch: int, back: bool) -> int | None:
        """When what a slot needs from another stage is there; None where that is not known yet."""
        giver = stage + 1 if back else stage - 1
        if not 0 <= giver < len(self.units):
            return 0
        return stops.get((giver, batch, back))

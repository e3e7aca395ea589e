"""A stage's way through a timetable, pausing at the same times as all others.

In a pause the whole engine may do something else together. No stage may then wait for one that has paused before it
sent what the first one needs; so pauses are counted by a clock that runs alike on every rank, and what is taken within
a slot has been sent before the slot's start. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

from loreloop.engine.contract import Pause
from loreloop.parallel.timetable import Slot, Timetable


class StageClock:
    """The slots of one stage. `now` is how many units have passed; each has ended with a pause."""

    def __init__(self, timetable: Timetable, stage: int, pause: Pause) -> None:
        self.timetable, self.stage, self.pause, self.now = timetable, stage, pause, 0
        self._stop = 0

    def slots(self) -> Iterator[Slot]:
        """Each when its time has come. After the last one, waits for the end of all stages' work."""
        for slot in self.timetable.slots[self.stage]:
            self._wait(slot.start)
            self._stop = slot.stop
            yield slot
            self._wait(slot.stop)
        self._wait(self.timetable.end)

    def tick(self, units: int) -> None:
        """Work of so many units is done. The end of the slot is not reached by that: it says that all has been sent."""
        self._wait(min(self.now + units, self._stop - 1))

    def _wait(self, until: int) -> None:
        while self.now < until:
            self.now += 1
            self.pause()

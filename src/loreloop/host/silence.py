"""Whether the processes of an engine do anything amid a piece of work, or one of them has stopped and all wait for it.

A process that waits for others is as idle as one that hangs, so they are looked at together: work goes on as long as
any of them computes, or waits for a disk. So neither a long pass nor a long load is taken for a hang, and a stopped
process is found as soon as the others have nothing left to do without it. Linux only, without effect elsewhere. Knows
no tensors.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LEAST_SHARE = 0.02  # of one core, that processes have to use together: connections and clocks take some as well
POLLS = 20  # in the time that a group may be silent
FROM_STATE, OF_USER = 2, 13  # places in `stat` behind the process's name: see proc(5)
DISK, TICKS = "D", 100  # the state of waiting for a disk; the system counts in hundredths of a second


@dataclass(frozen=True)
class Activity:
    """Processor seconds of a process so far, and what it does: R, S, D, T, … as the system has it."""

    seconds: float
    state: str


def activity_of(pid: int) -> Activity:
    """Of a process here; with the state Z where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return Activity(0.0, "Z")
    # Behind the name, which is in brackets and may hold anything.
    fields = text.rpartition(")")[2].split()
    user, system = fields[OF_USER - FROM_STATE], fields[OF_USER - FROM_STATE + 1]
    return Activity((int(user) + int(system)) / TICKS, fields[0])


def group_of(pid: int) -> list[int]:
    """A process and those that its main thread has started; none where it has started none, or that cannot be told."""
    try:
        children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [pid, *children] if children else []


class Watch:
    """Over the processes `pids`. Where none of them has done anything for `seconds` of one piece of work,
    `silent` is called with what they do; never with 0 seconds."""

    def __init__(self, pids: Sequence[int], seconds: float, silent: Callable[[str], None]) -> None:
        self.pids, self.seconds, self.silent = pids, seconds, silent
        self._work, self._n_works = "", 0
        if pids and seconds:
            threading.Thread(target=self._look, name="watch", daemon=True).start()

    @contextlib.contextmanager
    def amid(self, work: str) -> Iterator[None]:
        """As long as this lasts, the processes have something to do, by this name. In a pause of it there may be
        another piece of work."""
        before, self._work, self._n_works = self._work, work, self._n_works + 1
        try:
            yield
        finally:
            self._work, self._n_works = before, self._n_works + 1

    def _look(self) -> None:
        began, n_works, seconds = time.monotonic(), 0, 0.0
        while True:
            time.sleep(self.seconds / POLLS)
            now, found = time.monotonic(), {pid: activity_of(pid) for pid in self.pids}
            used = sum(each.seconds for each in found.values())
            works = used - seconds > LEAST_SHARE * self.seconds or any(each.state == DISK for each in found.values())
            if works or not self._work or n_works != self._n_works:
                began, n_works, seconds = now, self._n_works, used
            elif now - began > self.seconds:
                states = ", ".join(f"process {pid} is in state {each.state}" for pid, each in found.items())
                self.silent(f"nothing has happened for {self.seconds:g} s amid {self._work} ({states})")
                return

"""How many threads compute: as many as the cores that nobody else is using.

A team of threads waits, spinning, for its slowest member; beside a busy neighbour every product then takes as long as
the neighbour's time slices, several times what fewer threads need. Reads Linux' counters; elsewhere the number stays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

STAT = Path("/proc/stat")
PERIOD_S = 0.5


class ThreadKeeper:
    """Sets the library's thread count, at most `most`, now and then as the machine's load asks for it."""

    def __init__(self, most: int, *, fixed: bool, busy_seconds: Callable[[], float] | None = None) -> None:
        self.most = most
        self._busy_seconds = busy_seconds or _busy_seconds
        self._adapts = not fixed and most > 1 and STAT.exists()
        # All of them to begin with, as a reading needs a period of time behind it.
        torch.set_num_threads(most)
        self._last = self._reading() if self._adapts else (0.0, 0.0, 0.0)

    def adjust(self) -> None:
        """Cheap enough to call between any two steps; only the thread that computes may call it."""
        if not self._adapts or time.monotonic() - self._last[0] < PERIOD_S:
            return
        now = self._reading()
        # Differences of counters: what happened since the last reading, by the wall, by all processes, by this one.
        elapsed_s, busy_s, own_s = (after - before for after, before in zip(now, self._last, strict=True))
        self._last = now
        # Counters of the kernel and of the process are not read at one instant, so the difference may be slightly
        # negative.
        n_threads = threads_beside(max(0.0, busy_s - own_s) / elapsed_s, self.most)
        if n_threads != torch.get_num_threads():
            torch.set_num_threads(n_threads)

    def _reading(self) -> tuple[float, float, float]:
        return time.monotonic(), self._busy_seconds(), time.process_time()


def threads_beside(others: float, most: int) -> int:
    """Threads that have a core to themselves while others use so many cores."""
    return max(1, min(most, round(len(os.sched_getaffinity(0)) - others)))


def _busy_seconds() -> float:
    """Time that this process' cores have spent on anything since they started."""
    own = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for line in STAT.read_text().splitlines():
        name, *fields = line.split()
        if name in own:
            # Waiting for a disk is idle time to this end: the core is free for computing.
            user, nice, system, _idle, _waiting, irq, soft_irq = map(int, fields[:7])
            ticks += user + nice + system + irq + soft_irq
    return ticks / os.sysconf("SC_CLK_TCK")

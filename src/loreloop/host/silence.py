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
RUNS, DISK, TICKS = "R", "D", 100  # states of a thread: at work, and waiting for a disk; the clock's hundredths


@dataclass(frozen=True)
class Activity:
    """Processor seconds of a process so far, and what it does: R, S, D, T, … as the system has it."""

    seconds: float
    state: str


def activity_of(pid: int) -> Activity:
    """Of a process here; with the state Z where there is none."""
    try:
        whole = _fields(Path(f"/proc/{pid}/stat"))
    except OSError:
        return Activity(0.0, "Z")
    user, system = whole[OF_USER - FROM_STATE], whole[OF_USER - FROM_STATE + 1]
    # The process's own state is that of its main thread, and another one may be reading or computing for it.
    states = {whole[0], *_thread_states(pid)}
    state = next((busy for busy in (RUNS, DISK) if busy in states), whole[0])
    return Activity((int(user) + int(system)) / TICKS, state)


def _thread_states(pid: int) -> Iterator[str]:
    looks = str(threading.get_native_id())  # at work for as long as it reads this, in one of the processes it looks at
    for task in Path(f"/proc/{pid}/task").glob("*"):
        if task.name != looks:
            with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                yield _fields(task / "stat")[0]


def _fields(stat: Path) -> list[str]:
    # Behind the name, which is in brackets and may hold anything.
    return stat.read_text().rpartition(")")[2].split()


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
        n_silent, n_works, seconds = 0, 0, 0.0
        while True:
            time.sleep(self.seconds / POLLS)
            found = {pid: activity_of(pid) for pid in self.pids}
            used = sum(each.seconds for each in found.values())
            works = used - seconds > LEAST_SHARE * self.seconds
            works = works or any(each.state in (RUNS, DISK) for each in found.values())
            if works or not self._work or n_works != self._n_works:
                n_silent, n_works, seconds = 0, self._n_works, used
                continue
            # Looks are counted, and not the time: where all processes were stopped for a while, as in a debugger or a
            # paused container, so was this one, and no time has passed for the work either.
            n_silent += 1
            if n_silent > POLLS:
                states = ", ".join(f"process {pid} is in state {each.state}" for pid, each in found.items())
                self.silent(f"nothing has happened for {self.seconds:g} s amid {self._work} ({states})")
                return

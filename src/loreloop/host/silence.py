"""Whether the processes of an engine do anything amid a piece of work, or one of them has stopped and all wait for it.

A process that waits for others is as idle as one that hangs, so they are looked at together: work goes on as long as
any of them computes, or waits for a disk. So neither a long pass nor a long load is taken for a hang, and a stopped
process is found as soon as the others have nothing left to do without it. Processes of other hosts say what they do;
one that says nothing does nothing. Linux only, without effect elsewhere. Knows no tensors.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

LEAST_SHARE = 0.02  # of one core, that processes have to use together: connections and clocks take some as well
POLLS = 20  # in the time that a group may be silent
FROM_STATE, OF_USER = 2, 13  # places in `stat` behind the process's name: see proc(5)
RUNS, DISK, TICKS = "R", "D", 100  # states of a thread: at work, and waiting for a disk; the clock's hundredths
SAYS_NOTHING = "-"  # in place of a state


@dataclass(frozen=True)
class Activity:
    """Processor seconds of a process so far, and what it does: R, S, D, T, … as the system has it."""

    seconds: float
    state: str

    def __str__(self) -> str:
        return f"{self.seconds:.2f} {self.state}"

    @staticmethod
    def read(text: str) -> Activity:
        """One that was written as text. ValueError where none was."""
        seconds, state = text.split()
        return Activity(float(seconds), state)


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


def main_activity_of(pid: int) -> Activity:
    """As `activity_of`, of the main thread, which takes part in all that a process of an engine computes. Beside it Ray
    has threads that are never quite still."""
    try:
        main = _fields(Path(f"/proc/{pid}/task/{pid}/stat"))
    except OSError:
        return Activity(0.0, "Z")
    user, system = main[OF_USER - FROM_STATE], main[OF_USER - FROM_STATE + 1]
    return Activity((int(user) + int(system)) / TICKS, DISK if DISK in _thread_states(pid) else main[0])


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


class Afar:
    """What processes of other hosts say of themselves, by rank. Any thread may use it."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._said: dict[int, Activity] = {}
        self._news: set[int] = set()
        self._lock = threading.Lock()

    def expect(self, names: Mapping[int, str]) -> None:
        """From now on these are there."""
        with self._lock:
            self._names |= names

    def say(self, rank: int, text: str) -> None:
        """Takes in what a process has said; nonsense is none."""
        with self._lock, contextlib.suppress(ValueError):
            self._said[rank] = Activity.read(text)
            self._news.add(rank)

    def look(self) -> dict[str, Activity]:
        """What each has said since the last look."""
        with self._lock:
            news, self._news = self._news, set()
            known = {rank: self._said.get(rank, Activity(0.0, SAYS_NOTHING)) for rank in self._names}
            return {
                self._names[rank]: each if rank in news else replace(each, state=SAYS_NOTHING)
                for rank, each in known.items()
            }


def tell_often(seconds: float, say: Callable[[Activity], None]) -> None:
    """Says what this process does, as often as a watch of so many seconds looks; in the background."""

    def tell() -> None:
        while True:
            time.sleep(seconds / POLLS)
            say(main_activity_of(os.getpid()))

    if seconds:
        threading.Thread(target=tell, name="tell", daemon=True).start()


class Watch:
    """Over the processes `pids`, and those `afar`. Where none of them has done anything for `seconds` of one piece of
    work, `silent` is called with what they do; never with 0 seconds."""

    def __init__(
        self, pids: Sequence[int], seconds: float, silent: Callable[[str], None], afar: Afar | None = None
    ) -> None:
        self.pids, self.seconds, self.silent, self.afar = pids, seconds, silent, afar
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
            found = self._found()
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
                states = ", ".join(map(_told, found, found.values()))
                self.silent(f"nothing has happened for {self.seconds:g} s amid {self._work} ({states})")
                return

    def _found(self) -> dict[str, Activity]:
        if self.afar is None:
            return {f"process {pid}": activity_of(pid) for pid in self.pids}
        return {f"process {pid}": main_activity_of(pid) for pid in self.pids} | self.afar.look()


def _told(name: str, activity: Activity) -> str:
    return f"{name} says nothing" if activity.state == SAYS_NOTHING else f"{name} is in state {activity.state}"

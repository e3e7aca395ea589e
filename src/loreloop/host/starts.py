"""Processes that die before they have come up: five times for the same reason, and another try would not help either.

A process says that it has come up by a file of its own. One that dies later is no matter of this file: what it had in
hand may be why, and has its own end (`host/dispatcher.py`).
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

MAX_STARTS = 5
ANY_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")  # of a process, a line, an address: other ones, yet the same reason


def say_up(folder: Path, pid: int) -> None:
    """To be called by a process once it does what it is for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(pid)).touch()


def came_up(folder: Path, pid: int) -> bool:
    """Whether a process that is dead now had said so; asked once."""
    mark = folder / str(pid)
    found = mark.exists()
    # Numbers of processes are used again, so a mark must not outlive its process.
    mark.unlink(missing_ok=True)
    return found


def reason_of(exit_code: int, last_words: str) -> str:
    """How a process ended, and what it said last."""
    name = f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
    return f"{last_words} ({name})" if last_words else name


@dataclass
class Starts:
    """Of one process: how often in a row it has died before it came up, for the same reason.

    Engines end with the HTTP process, so those of another life of it do not count.
    """

    reason: str = ""
    n_in_vain: int = 0
    http_life: int = 0
    has_come_up: bool = False  # ever

    def in_vain(self, reason: str, http_life: int) -> bool:
        """Counts another one; True when it is the last."""
        alike = ANY_NUMBER.sub("#", reason) == ANY_NUMBER.sub("#", self.reason)
        self.n_in_vain = self.n_in_vain + 1 if alike and http_life == self.http_life else 1
        self.reason, self.http_life = reason, http_life
        return self.n_in_vain >= MAX_STARTS

    def succeeded(self) -> None:
        """The process came up, so that earlier failures no longer count."""
        self.n_in_vain, self.has_come_up = 0, True

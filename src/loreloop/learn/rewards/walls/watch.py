"""Follows one call of code from outside, from the process that started it: its output, time, memory, files and end.

What the code's process says of itself is repeated, never believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loreloop.learn.rewards.walls import work_folders
from loreloop.learn.rewards.walls.calls import Ended, Limit, Limits

LOOK_SECONDS = 0.02  # between two looks at memory and disk
MAX_ERROR = 8000  # characters of what the code says of its error
NOT_CLEAN = "the code ended its process without a result"


@dataclass(frozen=True)
class Watched:
    """A call's process and its limits; `proc` is the machine's /proc, where memory is looked up, and `folder` is
    measured where its size is not bounded by itself."""

    child: int
    limits: Limits
    proc: int
    folder: Path | None


class Watch:
    """Follows one call: reads what it prints and gives within bounds, and ends it when a limit is passed."""

    def __init__(self, watched: Watched) -> None:
        self.child, self.limits, self.proc, self.folder = watched.child, watched.limits, watched.proc, watched.folder
        self.read: dict[int, bytearray] = {}
        self.limit: Limit | None = None
        self.status, self.cpu_seconds = 0, 0.0

    def follow(self, output: int, result: int, deadline: float) -> None:
        """Until the process has ended; what others hold open after it is not waited for."""
        self.read = {output: bytearray(), result: bytearray()}
        ended = os.pidfd_open(self.child)
        waiting = {output, result, ended}
        while ended in waiting:
            left = deadline - time.monotonic()
            ready, _, _ = select.select(waiting, [], [], max(0.0, min(LOOK_SECONDS, left)))
            for handle in ready:
                if handle == ended or not self._take(handle):
                    waiting.discard(handle)
            if self.limit is None and ended in waiting:
                self.limit = "time" if left <= 0 else self._passed()
                if self.limit is not None:
                    # By the signal that cannot be caught; with namespaces it takes all processes of the call along.
                    os.kill(self.child, signal.SIGKILL)
        _, self.status, usage = os.wait4(self.child, 0)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        for handle in self.read:
            while select.select([handle], [], [], 0)[0] and self._take(handle):
                pass

    def _take(self, handle: int) -> bool:
        # One byte more than allowed is kept, which is enough to know that the bound was passed.
        part = os.read(handle, 1 << 16)
        kept = self.read[handle]
        kept += part[: self.limits.output_bytes + 1 - len(kept)]
        return bool(part) and len(kept) <= self.limits.output_bytes

    def _passed(self) -> Limit | None:
        if any(len(kept) > self.limits.output_bytes for kept in self.read.values()):
            return "output"
        if sum(self._resident_bytes(pid) for pid in self._tree(self.child)) > self.limits.memory_bytes:
            return "memory"
        if self.folder is not None and work_folders.n_bytes(self.folder) > self.limits.disk_bytes:
            return "disk"
        return None

    def _tree(self, pid: int) -> Iterator[int]:
        yield pid
        # The kernel lists a child with the thread that made it, and not with the process.
        for thread in self._threads(pid):
            for child in self._proc(f"{pid}/task/{thread}/children").split():
                yield from self._tree(int(child))

    def _threads(self, pid: int) -> list[str]:
        with contextlib.suppress(OSError):  # it has just ended
            handle = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.proc)
            try:
                return os.listdir(handle)
            finally:
                os.close(handle)
        return []

    def _resident_bytes(self, pid: int) -> int:
        # A first thread that has ended alone has no memory any more, while the others of its process go on with it.
        for thread in self._threads(pid):
            numbers = self._proc(f"{pid}/task/{thread}/statm").split()
            if len(numbers) > 1 and int(numbers[1]):
                return int(numbers[1]) * resource.getpagesize()
        return 0

    def _proc(self, path: str) -> str:
        with contextlib.suppress(OSError):  # it has just ended
            handle = os.open(path, os.O_RDONLY, dir_fd=self.proc)
            try:
                return os.read(handle, 1 << 16).decode()
            finally:
                os.close(handle)
        return ""

    def ended(self, seconds: float) -> Ended:
        """What came of it, judged from outside: the words of the code itself are only repeated."""
        output, result = (bytes(kept[: self.limits.output_bytes]) for kept in self.read.values())
        told = _told(result)
        limit = self.limit or self._limit_at_end(told.exception)
        error = told.error if limit is None or told.exception else None
        if limit is not None:
            error = error or f"the limit of {limit} was passed"
        elif told.result_json is None and error is None:
            error = self._end_in_words()
        return Ended(
            stdout=output.decode(errors="replace"),
            result_json=told.result_json if error is None else None,
            error=error,
            exception=told.exception,
            seconds=seconds,
            limit=limit,
        )

    def _limit_at_end(self, exception: str | None) -> Limit | None:
        if any(len(kept) > self.limits.output_bytes for kept in self.read.values()):
            return "output"
        if exception == "MemoryError":
            return "memory"
        killed = os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) in (signal.SIGKILL, signal.SIGXCPU)
        return "cpu" if killed and self.cpu_seconds > self.limits.cpu_seconds - 0.5 else None

    def _end_in_words(self) -> str:
        if os.WIFSIGNALED(self.status):
            return f"{NOT_CLEAN}: signal {signal.Signals(os.WTERMSIG(self.status)).name}"
        return NOT_CLEAN


def _told(result: bytes) -> Ended:
    """What the code's process wrote, where it is of the form that it should have."""
    try:
        told = json.loads(result)
        given = (
            _clean(json.dumps(told["result"], ensure_ascii=False))
            if isinstance(told, dict) and "result" in told
            else None
        )
    except (ValueError, RecursionError):
        return Ended()
    if given is not None or not isinstance(told, dict):
        return Ended(result_json=given)
    # Texts only, and short ones: what stands here may be forged, and goes into answers, events and logs.
    words = (told.get(name) for name in ("error", "exception"))
    error, exception = (_clean(word) if isinstance(word, str) and word else None for word in words)
    return Ended(error=error and error[:MAX_ERROR], exception=exception and exception[:200])


def _clean(text: str) -> str:
    """Without halves of characters, which code can make and no JSON of ours can hold."""
    return text.encode(errors="replace").decode()

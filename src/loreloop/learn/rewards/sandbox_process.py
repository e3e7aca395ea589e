"""The sandbox's own process: it stands behind walls, waits for calls, and forks a process for each one.

Run as a module with a way's name; it speaks in frames (`walls/calls.py`) on its standard handles. Between this process
and the code stands one more, that watches a call's time, output, memory and end.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from loreloop.learn.rewards.walls import inside, kernel, landlock, namespaces, seccomp
from loreloop.learn.rewards.walls.calls import (
    Ended,
    Greeting,
    Limit,
    Limits,
    Request,
    Way,
    frame_of,
    read_frame,
    request_of,
    write_all,
)

# Loaded once, before any call: code that imports these pays nothing for it.
USUAL = (
    *("ast", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "difflib", "enum", "fractions"),
    *("functools", "heapq", "io", "itertools", "math", "operator", "random", "re", "statistics", "string"),
    *("textwrap", "typing", "unicodedata", "unittest"),
)
LOOK_SECONDS = 0.02  # between two looks at memory and disk
NOT_CLEAN = "the code ended its process without a result"


@dataclass
class Sandbox:
    """Which way it stands, what code may read, and the machine's /proc, where memory is looked up."""

    way: Way
    readable: list[Path]
    proc: int
    walls: list[str] = field(default_factory=list)


def readable_paths() -> list[Path]:
    """The interpreter with its library and packages, and the system's libraries: nothing of a user."""
    base = Path(sys.base_prefix)
    own = [base] if base not in (Path("/usr"), Path("/")) else []
    packages = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    system = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime")
    paths = dict.fromkeys([*own, *packages, *map(Path, system)])
    # A folder below another one comes with it.
    return [path for path in paths if not any(other in path.parents for other in paths)]


def stand(way: Way) -> Sandbox:
    """Puts up what holds for all calls; OSError where it does not hold here."""
    sandbox = Sandbox(way, readable_paths(), os.open("/proc", os.O_RDONLY | os.O_CLOEXEC))
    if way == "namespaces":
        namespaces.enter(sandbox.readable, sandbox.proc)
        sandbox.walls = ["files", "network", "processes", "signals", "disk"]
    elif way == "bubblewrap":
        sandbox.walls = ["files", "network", "processes", "signals", "disk"]
    elif way == "landlock":
        if not landlock.version() or not seccomp.available():
            raise OSError(0, "Landlock or filters for system calls are missing")
        sandbox.walls = ["files", "network", "processes", "signals"]
    elif seccomp.available():
        sandbox.walls = ["network", "processes", "signals"]
    kernel.die_with_parent(signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # code of the same user cannot look into this process
    return sandbox


def attend(sandbox: Sandbox, request: Request) -> Ended:
    """Runs one call in a process of its own and watches it until its end."""
    output, output_in = os.pipe()
    result, result_in = os.pipe()
    work = _work(sandbox.way)
    if sandbox.way == "namespaces":
        namespaces.unshare(namespaces.NEW_PROCESSES)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become_code(sandbox, request, work, (output_in, result_in))
    os.close(output_in)
    os.close(result_in)
    watch = Watch(sandbox, request.limits, child, work)
    try:
        watch.follow(output, result, started + request.limits.seconds)
    finally:
        if sandbox.way in inside.STRICT_WAYS:
            shutil.rmtree(work, ignore_errors=True)
    return watch.ended(time.monotonic() - started)


def _work(way: Way) -> Path:
    return Path(tempfile.mkdtemp(prefix="loreloop-code-")) if way in inside.STRICT_WAYS else Path(namespaces.WORK)


def _become_code(sandbox: Sandbox, request: Request, work: Path, handles: tuple[int, int]) -> None:
    """Never returns. Whatever goes wrong, the process ends without a result, and its watcher says so."""
    try:
        inside.prepare(*handles)
        inside.confine(sandbox.way, request.limits, sandbox.readable, work)
        inside.run(request)
    finally:
        os._exit(0)


class Watch:
    """Follows one call: reads what it prints and gives within bounds, and ends it when a limit is passed."""

    def __init__(self, sandbox: Sandbox, limits: Limits, child: int, work: Path) -> None:
        self.sandbox, self.limits, self.child, self.work = sandbox, limits, child, work
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
                    os.kill(self.child, signal.SIGKILL)
        _, self.status, usage = os.wait4(self.child, 0)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        for handle in self.read:
            while select.select([handle], [], [], 0)[0] and self._take(handle):
                pass

    def _take(self, handle: int) -> bool:
        part = os.read(handle, 1 << 16)
        kept = self.read[handle]
        kept += part[: self.limits.output_bytes + 1 - len(kept)]
        return bool(part) and len(kept) <= self.limits.output_bytes

    def _passed(self) -> Limit | None:
        if any(len(kept) > self.limits.output_bytes for kept in self.read.values()):
            return "output"
        if sum(self._resident_bytes(pid) for pid in self._tree(self.child)) > self.limits.memory_bytes:
            return "memory"
        if self.sandbox.way in inside.STRICT_WAYS and _folder_bytes(self.work) > self.limits.disk_bytes:
            return "disk"
        return None

    def _tree(self, pid: int) -> Iterator[int]:
        yield pid
        for child in self._proc(f"{pid}/task/{pid}/children").split():
            yield from self._tree(int(child))

    def _resident_bytes(self, pid: int) -> int:
        numbers = self._proc(f"{pid}/statm").split()
        return int(numbers[1]) * resource.getpagesize() if len(numbers) > 1 else 0

    def _proc(self, path: str) -> str:
        with contextlib.suppress(OSError):  # it has just ended
            handle = os.open(path, os.O_RDONLY, dir_fd=self.sandbox.proc)
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
        text = json.dumps(told["result"]) if isinstance(told, dict) and "result" in told else None
    except (ValueError, RecursionError):
        return Ended()
    if text is not None or not isinstance(told, dict):
        return Ended(result_json=text)
    error, exception = (str(told[name]) if told.get(name) else None for name in ("error", "exception"))
    return Ended(error=error, exception=exception)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def answer(sandbox: Sandbox, text: bytes) -> None:
    """A call in two processes of its own; its answer is written by the watching one, or in its name."""
    watcher = os.fork()
    if watcher == 0:
        code = 1
        try:
            kernel.die_with_parent(signal.SIGKILL)
            write_all(1, frame_of(attend(sandbox, request_of(text))))
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(watcher, 0)[1] != 0:
        write_all(1, frame_of(Ended(error="the process that watched the code has ended; was memory short?")))


def main(name: str) -> None:
    """Greets, then answers until nobody asks any more."""
    way: Way = next(way for way in get_args(Way) if way == name)
    for module in USUAL:
        __import__(module)
    try:
        sandbox = stand(way)
    except OSError as error:
        return write_all(1, frame_of(Greeting(trouble=str(error))))
    write_all(1, frame_of(Greeting(sandbox.walls)))
    gc.freeze()  # forks share what lies here
    while (text := read_frame(0)) is not None:
        answer(sandbox, text)


if __name__ == "__main__":
    main(sys.argv[1])

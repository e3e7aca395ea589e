"""The sandbox's own process: it stands behind walls, waits for calls, and forks a process for each one.

Run as a module with a way's name; it speaks in frames (`walls/calls.py`) on its standard handles. Between this process
and the code stands one more, that watches a call's time, output, memory and end.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from loreloop.learn.rewards.walls import inside, kernel, landlock, namespaces, seccomp, work_folders
from loreloop.learn.rewards.walls.calls import (
    Ended,
    Greeting,
    Request,
    Way,
    frame_of,
    read_frame,
    request_of,
    write_all,
)
from loreloop.learn.rewards.walls.watch import Watch, Watched

# Loaded once, before any call: code that imports these pays nothing for it.
USUAL = (
    *("ast", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "difflib", "enum", "fractions"),
    *("functools", "heapq", "io", "itertools", "math", "operator", "random", "re", "statistics", "string"),
    *("textwrap", "typing", "unicodedata", "unittest"),
)


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
        work_folders.sweep()
        if not seccomp.available():
            raise OSError(0, "filters for system calls are missing")
        if landlock.version() < landlock.FIRST_SOUND:
            # Alone it would let code empty every file that this user may write, the database among them.
            raise OSError(0, "Landlock is missing, or older than its third version (Linux 6.2)")
        sandbox.walls = ["files", "network", "processes", "signals", "disk"]
    else:
        # The sum of all files is looked at, as with Landlock, but where they lie is not.
        sandbox.walls = ["network", "processes", "signals", "disk"] if seccomp.available() else ["disk"]
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
    folder = work if sandbox.way in inside.STRICT_WAYS else None
    watch = Watch(Watched(child, request.limits, sandbox.proc, folder))
    try:
        watch.follow(output, result, started + request.limits.seconds)
    finally:
        if folder is not None:
            work_folders.remove(folder)
    return watch.ended(time.monotonic() - started)


def _work(way: Way) -> Path:
    return work_folders.new(os.getppid()) if way in inside.STRICT_WAYS else Path(namespaces.WORK)


def _become_code(sandbox: Sandbox, request: Request, work: Path, handles: tuple[int, int]) -> None:
    """Never returns. Whatever goes wrong, the process ends without a result, and its watcher says so."""
    try:
        inside.prepare(*handles, work)
        inside.confine(sandbox.way, request.limits, sandbox.readable, work)
        inside.run(request)
    finally:
        os._exit(0)


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

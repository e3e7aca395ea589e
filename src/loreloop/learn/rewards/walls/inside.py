"""The process that runs code from outside: it puts up the last walls around itself and then knows nothing but the code.

Nothing here is trusted once the code has begun; the process that started it judges what comes out.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from loreloop.learn.rewards.walls import kernel, landlock, namespaces, seccomp
from loreloop.learn.rewards.walls.calls import Limits, Request, Way, write_all
from loreloop.protocol.errors import outcome_of

RESULT = 3  # the handle that the result is written to; 0 to 2 are nothing and the captured output
MAX_ERROR = 4000  # characters of a traceback
PLACE = "<code>"
DEVICES = tuple(Path("/dev", name) for name in namespaces.DEVICES)  # the rest of /dev holds disks and shared memory
STRICT_WAYS = ("landlock", "limits")  # those without a namespace of processes around each call


def strict_here(way: Way) -> bool:
    """Whether no process may be started: where they could outlive their call, or root's would not be counted."""
    return way in STRICT_WAYS or (way == "bubblewrap" and os.getuid() == 0)


def confine(way: Way, limits: Limits, readable: list[Path], work: Path) -> None:
    """Puts up what holds for one call; OSError where something that was found to hold does not."""
    kernel.die_with_parent(signal.SIGKILL)
    if way == "namespaces":
        namespaces.fresh_work(limits.disk_bytes)
    else:
        os.chdir(work)
    os.setsid()
    _limit(limits)
    kernel.drop_capabilities()
    kernel.no_new_privileges()
    if way != "limits":
        if landlock.version():
            landlock.restrict([*readable, *DEVICES], [work] if way == "landlock" else [work, Path("/tmp")])
        elif way == "landlock":
            raise OSError(0, "Landlock is gone")
    if seccomp.available():
        seccomp.refuse_calls(strict=strict_here(way))


def _limit(limits: Limits) -> None:
    bounds = {
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NPROC: limits.processes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def run(request: Request) -> None:
    """Runs the code and writes what came of it: {"result": …}, or {"error": …, "exception": …}."""
    own = os.getpid()
    outcome = outcome_of(lambda: _called(request))
    if os.getpid() != own:
        return  # a copy that the code made of itself and let come back here
    if isinstance(outcome, Exception):
        told = {"error": _explained(outcome), "exception": type(outcome).__name__}
        gc.collect()  # where memory was the trouble, there is some again
        text = json.dumps(told)
    else:
        text = outcome
    sys.stdout.flush()
    write_all(RESULT, text.encode())


def _called(request: Request) -> str:
    try:
        # A name of its own: code under `if __name__ == "__main__"` is no part of a grader, but is of a program.
        names: dict[str, Any] = {"__name__": "__main__" if request.function is None else "__grader__"}
        exec(compile(request.code, PLACE, "exec"), names)
        value = None
        if request.function is not None:
            if request.function not in names:
                raise NameError(f"the code defines no function {request.function!r}")
            value = names[request.function](*request.arguments)
        return json.dumps({"result": value}, default=_plain)
    except SystemExit as error:
        # Code may end itself; the result is then missing where one was to be given, and a failure says so.
        if request.function is None and not error.code:
            return json.dumps({"result": None})
        raise RuntimeError(f"the code ended itself with exit code {error.code!r}") from None


def _plain(value: Any) -> Any:
    """Numbers of NumPy and the like as Python's own."""
    match value:
        case object(item=item) if callable(item):
            return item()
        case _:
            raise TypeError(f"the result holds a {type(value).__name__}, which JSON has no form for")


def _explained(error: Exception) -> str:
    """The traceback from the code's own first line on."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == PLACE]
    lines = [f"line {frame.lineno}, in {frame.name}" for frame in frames[-8:]]
    words = "".join(traceback.format_exception_only(error)).strip()
    return "\n".join([words[:MAX_ERROR], *lines])


def prepare(output: int, result: int, work: Path) -> None:
    """Standard handles become the captured ones, all others are closed, and the environment is emptied."""
    nothing = os.open("/dev/null", os.O_RDONLY)
    high = fcntl.fcntl(result, fcntl.F_DUPFD, RESULT + 1)  # out of the way of the low numbers
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(high, RESULT)
    os.closerange(RESULT + 1, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    own = {"HOME": str(work), "TMPDIR": str(work), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    os.environ.update(own | {"OPENBLAS_NUM_THREADS": "1"})
    tempfile.tempdir = None  # found out anew: the process that this one is a copy of had another
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", errors="backslashreplace", buffering=1, closefd=False)
    sys.executable = getattr(sys, "_base_executable", sys.executable)
    sys.argv = [PLACE]

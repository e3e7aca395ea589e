"""Runs Python code from outside behind walls: no files of a user, no network, and bounds on time, memory and output.

The kernel's means differ from machine to machine, so several ways are tried, the strongest first, and `strength` tells
which one holds. Where none does, code is refused, unless the operator's setting asks for limits alone.
Knows nothing of graders and rewards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from loreloop.config import CodeSandboxWay
from loreloop.learn.rewards.sandbox_process import readable_paths
from loreloop.learn.rewards.walls.calls import (
    MAX_FRAME,
    Ended,
    Greeting,
    Limit,
    Limits,
    Request,
    Way,
    frame_of,
)
from loreloop.learn.rewards.walls.namespaces import WORK
from loreloop.protocol.errors import BadRequest, Unavailable

__all__ = ["Call", "CodeSandbox", "Limits", "Outcome", "Strength", "Wanted"]

Wanted = CodeSandboxWay
STRONG: tuple[Way, ...] = ("namespaces", "bubblewrap", "landlock")
SINGLE_USE: tuple[Way, ...] = ("bubblewrap",)  # their process can build no new walls between two calls
WALLS = ("files", "network", "processes", "signals", "disk")
START_SECONDS, GRACE_SECONDS = 30.0, 10.0  # for a process to greet, and beyond a call's own time
MAX_CODE = 1 << 20  # bytes of code and arguments together
KEPT_VARIABLES = ("PATH", "PYTHONPATH", "TMPDIR")


@dataclass(frozen=True)
class Call:
    """A function that the code defines, and arguments for it that JSON has a form for."""

    function: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a call. `error` None: it went well, and `result` is what the function gave. `exception` is the class
    of the error where the code raised one; `limit` names the bound that was passed. `stdout` is all that was printed,
    to the stream of errors too; `seconds` is the time that passed."""

    stdout: str = ""
    result: Any = None
    error: str | None = None
    exception: str | None = None
    seconds: float = 0.0
    limit: Limit | None = None


@dataclass(frozen=True)
class Strength:
    """What holds here. `way` None: nothing does, and code is refused. Time, CPU, memory of each process and output are
    bounded in every way; `lacks` names the walls that do not stand. `refused` says why other ways were passed over."""

    way: Way | None
    lacks: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


class CodeSandbox:
    """Up to `workers` processes, each running one call at a time; more calls wait. They start when first needed and end
    with this process."""

    def __init__(self, wanted: Wanted = "auto", workers: int = 2) -> None:
        self.wanted = wanted
        self.turns = asyncio.Semaphore(workers)
        self.idle: list[_Worker] = []
        self.finding = asyncio.Lock()
        self.found: Strength | None = None
        self.tasks: set[asyncio.Future[Any]] = set()  # starts and ends that nobody waits for

    async def strength(self) -> Strength:
        """What holds on this machine; found out once, by trying."""
        async with self.finding:
            if self.found is None:
                self.found = await self._find()
            return self.found

    async def run(self, code: str, *, call: Call | None = None, limits: Limits = Limits()) -> Outcome:  # noqa: B008
        """Runs the code, then the function that `call` names. What the code does wrong is told in the outcome.
        BadRequest where no code is run here, or it is too long; Unavailable where no process could be started."""
        function, arguments = (call.function, call.arguments) if call else (None, ())
        frame = frame_of(Request(code, function, arguments, limits))
        if len(frame) > MAX_CODE:
            raise BadRequest(f"The code with its arguments has {len(frame)} bytes; at most {MAX_CODE} are run.")
        strength = await self.strength()
        if strength.way is None:
            raise BadRequest(
                "Code from outside is not run on this server: "
                + ("it is switched off (code_sandbox)." if self.wanted == "off" else f"{_why(strength)}.")
            )
        async with self.turns:
            worker = self.idle.pop() if self.idle else await _start(strength.way)
            answered = False
            try:
                ended = await worker.answer(frame, limits.seconds + GRACE_SECONDS)
                answered = True
            finally:
                # Cancelled in the middle: what this process says next would belong to another call.
                if not answered:
                    self._end(worker)
            self._give_back(worker, ended)
        return _outcome(ended)

    async def _find(self) -> Strength:
        if self.wanted == "off":
            return Strength(None)
        refused: dict[str, str] = {}
        for way in STRONG if self.wanted == "auto" else (self.wanted,):
            try:
                worker = await _start(way)
            except Unavailable as error:
                refused[way] = error.message
                continue
            self.idle.append(worker)
            return Strength(way, tuple(wall for wall in WALLS if wall not in worker.walls), refused)
        return Strength(None, WALLS, refused)

    def _give_back(self, worker: _Worker, ended: Ended | None) -> None:
        if ended is not None and worker.way not in SINGLE_USE:
            self.idle.append(worker)
            return
        self._end(worker)
        # The next one starts while the caller reads its answer, so that a call seldom waits for a start.
        self._later(self._prepare(worker.way))

    async def _prepare(self, way: Way) -> None:
        with contextlib.suppress(Unavailable):  # the next call will try again, and tell its caller
            self.idle.append(await _start(way))

    def _end(self, worker: _Worker) -> None:
        worker.kill()
        self._later(worker.process.wait())

    def _later(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """Ends the processes; the next call starts others."""
        while self.tasks:
            await asyncio.gather(*self.tasks)
        workers, self.idle = self.idle, []
        for worker in workers:
            worker.kill()
            await worker.process.wait()


def _why(strength: Strength) -> str:
    reasons = " ".join(f"{way}: {reason}" for way, reason in strength.refused.items())
    return f'no walls hold around it here ({reasons}), and its operator has not set code_sandbox = "limits"'


def _outcome(ended: Ended | None) -> Outcome:
    if ended is None:
        return Outcome(error="the sandbox's process has ended in the middle of the call")
    result, error = None, ended.error
    if error is None:
        try:
            result = json.loads(ended.result_json or "null")
        except (ValueError, RecursionError):
            error = "the result is nested too deeply"
    return Outcome(
        stdout=ended.stdout,
        result=result,
        error=error,
        exception=ended.exception,
        seconds=ended.seconds,
        limit=ended.limit,
    )


@dataclass
class _Worker:
    """One process of the sandbox, and the walls around it."""

    way: Way
    process: asyncio.subprocess.Process
    walls: Sequence[str]

    async def answer(self, frame: bytes, seconds: float) -> Ended | None:
        """None: it has ended, or did not answer in time."""
        assert self.process.stdin
        try:
            async with asyncio.timeout(seconds):
                self.process.stdin.write(frame)
                text = await _frame(self.process)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            return None
        return msgspec.json.decode(text, type=Ended)

    def kill(self) -> None:
        """At once; whatever runs in it goes with it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


async def _frame(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout
    n_bytes = int.from_bytes(await process.stdout.readexactly(4), "big")
    if n_bytes > MAX_FRAME:
        raise ConnectionError(f"a frame of {n_bytes} bytes")
    return await process.stdout.readexactly(n_bytes)


async def _start(way: Way) -> _Worker:
    command = _command(way)
    pipe = asyncio.subprocess.PIPE
    # Nothing of the server's environment goes along; a fixed seed for hashes makes a grader give the same twice.
    variables = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ} | {"PYTHONHASHSEED": "0"}
    nowhere = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=nowhere, env=variables)
    except OSError as error:
        raise _not_started(f"{command[0]}: {error.strerror}") from None
    try:
        async with asyncio.timeout(START_SECONDS):
            greeting = msgspec.json.decode(await _frame(process), type=Greeting)
    except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
        greeting = Greeting(trouble="its process ended before it was ready")
    worker = _Worker(way, process, greeting.walls)
    if greeting.trouble is not None:
        worker.kill()
        await process.wait()
        raise _not_started(greeting.trouble)
    return worker


def _not_started(reason: str) -> Unavailable:
    return Unavailable(f"No process to run code in could be started ({reason}); try again later.", 5.0)


def _command(way: Way) -> list[str]:
    python = [sys.executable, "-P", "-m", "loreloop.learn.rewards.sandbox_process", way]
    if way != "bubblewrap":
        return python
    # The interpreter of a virtual environment, and this package, may lie elsewhere than what code may read.
    own = [Path(sys.prefix), Path(__file__).parents[2]]
    shown = [
        word for path in [*readable_paths(), *own] if path.exists() for word in ("--ro-bind", str(path), str(path))
    ]
    walls = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    sized = ["--size", str(Limits().disk_bytes), "--tmpfs"]
    folders = ["--dev", "/dev", "--proc", "/proc", *sized, "/tmp", *sized, WORK, "--chdir", WORK]
    return [shutil.which("bwrap") or "bwrap", *walls, *folders, *shown, *python]

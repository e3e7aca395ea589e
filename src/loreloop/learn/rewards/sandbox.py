"""Runs Python code from outside behind walls: no files of a user, no network, and bounds on time, memory and output.

The kernel's means differ from machine to machine, so several ways are tried, the strongest first, and `strength` tells
which one holds. Where none does, code is refused, unless the operator's setting asks for limits alone.
Knows nothing of graders and rewards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from loreloop.config import CodeSandboxWay
from loreloop.learn.rewards.sandbox_worker import NotStarted, Worker, start
from loreloop.learn.rewards.turns import Turns
from loreloop.learn.rewards.walls.calls import Ended, Limit, Limits, Request, Way, frame_of
from loreloop.protocol.errors import BadRequest, Unavailable

LOG = logging.getLogger(__name__)
__all__ = ["Call", "CodeSandbox", "Limits", "Outcome", "Strength", "Wanted"]

Wanted = CodeSandboxWay
STRONG: tuple[Way, ...] = ("namespaces", "bubblewrap", "landlock")
SINGLE_USE: tuple[Way, ...] = ("bubblewrap",)  # their process can build no new walls between two calls
WALLS = ("files", "network", "processes", "signals", "disk")
GRACE_SECONDS = 10.0  # beyond a call's own time, for its answer to come
MAX_CODE = 1 << 20  # bytes of code and arguments together
MOST_WORKERS = 8


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

    def in_words(self) -> str:
        """The same in a sentence, for a log or a report."""
        if self.way is None:
            return "code from outside is refused: no walls hold around it here" + self._others()
        weak = f", which leaves these open: {', '.join(self.lacks)}" if self.lacks else ""
        return f"code from outside runs behind {self.way}{weak}{self._others()}"

    def _others(self) -> str:
        return "".join(f"; {way} does not hold: {reason}" for way, reason in self.refused.items())


class CodeSandbox:
    """Up to `workers` processes, each running one call at a time; more calls wait. By default as many as there are
    processors, from 2 to 8. They start when first needed and end with this process."""

    def __init__(self, wanted: Wanted = "auto", workers: int | None = None) -> None:
        self.wanted = wanted
        self.turns = Turns(workers or max(2, min(MOST_WORKERS, os.cpu_count() or 1)))
        self.idle: list[Worker] = []
        self.busy: set[Worker] = set()
        self.finding = asyncio.Lock()
        self.found: Strength | None = None
        self.tasks: set[asyncio.Future[Any]] = set()  # starts and ends that nobody waits for

    async def strength(self) -> Strength:
        """What holds on this machine; found out once, by trying."""
        async with self.finding:
            if self.found is None:
                self.found = await self._find()
                LOG.log(logging.WARNING if self.found.lacks else logging.INFO, "%s", self.found.in_words())
            return self.found

    async def run(
        self,
        code: str,
        *,
        call: Call | None = None,
        limits: Limits = Limits(),  # noqa: B008
        asker: str = "",
    ) -> Outcome:
        """Runs the code, then the function that `call` names. What the code does wrong is told in the outcome. Where
        calls must wait, askers take turns. BadRequest where no code is run here, or it is too long; Unavailable where
        no process could be started."""
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
        async with self.turns.turn(asker):
            worker = await self._worker(strength.way)
            self.busy.add(worker)
            answered = False
            try:
                ended = await worker.answer(frame, limits.seconds + GRACE_SECONDS)
                answered = True
            finally:
                # Cancelled in the middle: what this process says next would belong to another call.
                if not answered:
                    self.busy.discard(worker)
                    self._end(worker)
            self._give_back(worker, ended)
        return _outcome(ended)

    async def _find(self) -> Strength:
        if self.wanted == "off":
            return Strength(None)
        refused: dict[str, str] = {}
        for way in STRONG if self.wanted == "auto" else (self.wanted,):
            try:
                worker = await start(way)
            except NotStarted as error:
                refused[way] = str(error)
                continue
            self.idle.append(worker)
            return Strength(way, tuple(wall for wall in WALLS if wall not in worker.walls), refused)
        return Strength(None, WALLS, refused)

    async def _worker(self, way: Way) -> Worker:
        while self.idle:
            worker = self.idle.pop()
            if worker.process.returncode is None:  # or something has ended it while it waited
                return worker
        try:
            return await start(way)
        except NotStarted as error:
            raise Unavailable(f"No process to run code in could be started ({error}); try again later.", 5.0) from None

    def _give_back(self, worker: Worker, ended: Ended | None) -> None:
        closed = worker not in self.busy  # meanwhile; then nothing may be left behind, and nothing new be started
        self.busy.discard(worker)
        if ended is not None and worker.way not in SINGLE_USE and not closed:
            self.idle.append(worker)
            return
        self._end(worker)
        if closed:
            return
        # The next one starts while the caller reads its answer, so that a call seldom waits for a start.
        self._later(self._prepare(worker.way))

    async def _prepare(self, way: Way) -> None:
        with contextlib.suppress(NotStarted):  # the next call will try again, and tell its caller
            self.idle.append(await start(way))

    def _end(self, worker: Worker) -> None:
        worker.kill()
        self._later(worker.process.wait())

    def _later(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """Ends the processes, also those in the middle of a call, which then ends with an error; the next call starts
        others."""
        busy, self.busy = self.busy, set()
        for worker in busy:
            worker.kill()
        while self.tasks:
            await asyncio.gather(*self.tasks)
        workers, self.idle = [*busy, *self.idle], []
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

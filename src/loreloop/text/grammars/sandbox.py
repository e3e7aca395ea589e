"""Untrusted grammars are tried in a process of their own first: the library has no bound that holds for all of them.

A grammar that takes too much computing or memory there ends that process, and the request that brought it; the next
one gets a new process. Remembered is what says something of the grammar: an answer, or an end for want of computing
time. Knows no engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import OrderedDict
from typing import Any, TypeVar

import msgspec

from loreloop.protocol.errors import BadRequest, Unavailable
from loreloop.protocol.link import EngineInfo
from loreloop.text.grammars.grammar import MAX_GRAMMAR_BYTES

MAX_SECONDS, MAX_BYTES = 0.2, 1 << 30  # of computing and of memory, for one grammar; ordinary ones take milliseconds
WAIT_SECONDS = 20.0  # for the answer, however busy the machine is
N_REMEMBERED = 256
MAX_WAITING = 32  # grammars that nothing is known of, at once: a few seconds' work where all are hostile
STOPPED_BY_OTHERS = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)  # as a lack of memory does


class Rules(msgspec.Struct, frozen=True):
    """At most one is given."""

    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    regex: str | None = None


class WantedSchema(msgspec.Struct, frozen=True):
    """`about` names it in a refusal: a strict one is held exactly, or not at all."""

    about: str
    schema_: dict[str, Any]
    strict: bool


class SchemaQuestion(msgspec.Struct, frozen=True, tag=True):
    """Asks how far schemas can be held; what is left out of a strict one is an error."""

    wanted: tuple[WantedSchema, ...]


class HeldSchemas(msgspec.Struct, frozen=True):
    """The schemas as far as a grammar can hold them, in their order, and what was left out, in words."""

    schemas: tuple[dict[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()
    error: str | None = None


class Question(msgspec.Struct, frozen=True, tag=True):
    """For the model in `folder`."""

    rules: Rules
    folder: str
    vocab_size: int
    stop_tokens: tuple[int, ...]


class Verdict(msgspec.Struct, frozen=True):
    """The grammar that an engine can be asked to follow, or why there is none."""

    grammar: str | None = None
    error: str | None = None


V = TypeVar("V", Verdict, HeldSchemas)
LIMIT = f"{MAX_SECONDS:g} s of computing or {MAX_BYTES >> 20} MiB"
TOO_MUCH = f"The grammar or schema takes over {LIMIT} to prepare; send a simpler one."


class GrammarSandbox:
    """One process, started when first needed, that ends with this one; grammars are tried one by one."""

    def __init__(self, wait_seconds: float = WAIT_SECONDS) -> None:
        self.wait_seconds = wait_seconds
        self.process: asyncio.subprocess.Process | None = None
        self.turn = asyncio.Lock()
        self.n_waiting = 0
        self.known: OrderedDict[bytes, bytes] = OrderedDict()  # answers as they were written

    async def grammar_of(self, rules: Rules, info: EngineInfo) -> str | None:
        """The one that is given, as a grammar that can be followed in bounded time; BadRequest if it cannot."""
        if rules == Rules():
            return None
        return (await self._verdict(Question(rules, info.folder, info.vocab_size, info.eos_token_ids), Verdict)).grammar

    async def held(self, wanted: tuple[WantedSchema, ...]) -> HeldSchemas:
        """Schemas as far as they can be held; BadRequest names what a strict one has that cannot."""
        return await self._verdict(SchemaQuestion(wanted), HeldSchemas) if wanted else HeldSchemas()

    async def _verdict(self, question: Question | SchemaQuestion, kind: type[V]) -> V:
        question_json = msgspec.json.encode(question)
        if len(question_json) > 2 * MAX_GRAMMAR_BYTES:
            raise BadRequest(
                f"The grammar or schema has {len(question_json)} bytes; at most {MAX_GRAMMAR_BYTES} are followed."
            )
        answer_json = self.known.get(question_json) or await self._in_turn(question_json)
        self.known[question_json] = answer_json
        self.known.move_to_end(question_json)
        if len(self.known) > N_REMEMBERED:
            self.known.popitem(last=False)
        verdict = msgspec.json.decode(answer_json, type=kind)
        if verdict.error is not None:
            raise BadRequest(verdict.error)
        return verdict

    async def _in_turn(self, question_json: bytes) -> bytes:
        if self.n_waiting >= MAX_WAITING:
            raise Unavailable(
                f"{self.n_waiting} grammars or schemas wait to be tried; send this one again in a moment."
            )
        self.n_waiting += 1
        try:
            async with self.turn:
                # Asked once more under the lock: whoever waited before may have brought the same grammar.
                return self.known.get(question_json) or await self._tried(question_json)
        finally:
            self.n_waiting -= 1

    async def _tried(self, question_json: bytes) -> bytes:
        """Asked again where the process ended and the grammar need not be why: it may have ended before."""
        ended: int | None = None
        for _ in range(2):
            line, ended = await self._answer(question_json)
            if line:
                return line
            # The timer counts the process's own computing, so this says something of the grammar and may be remembered.
            if ended == -signal.SIGPROF:
                return msgspec.json.encode(Verdict(error=TOO_MUCH))
        if ended in STOPPED_BY_OTHERS:
            raise Unavailable("The process that tries grammars was ended twice; send the request again in a moment.")
        raise BadRequest(TOO_MUCH)

    async def _answer(self, question_json: bytes) -> tuple[bytes, int | None]:
        """A whole line, or how the process ended without one."""
        line = b""
        process = await self._running()
        assert process.stdin
        assert process.stdout
        try:
            async with asyncio.timeout(self.wait_seconds):
                process.stdin.write(question_json + b"\n")
                with contextlib.suppress(ConnectionError):
                    line = await process.stdout.readline()
                if not line.endswith(b"\n"):
                    line = b""
                    await process.wait()
        except TimeoutError:
            raise Unavailable(
                f"The grammar or schema was not tried within {self.wait_seconds:g} s; send it again in a moment."
            ) from None
        finally:
            if not line:  # it has ended, or this request has before it was answered
                await self.close()
        return line, process.returncode

    async def _running(self) -> asyncio.subprocess.Process:
        if self.process is None or self.process.returncode is not None:
            command = (sys.executable, "-P", "-m", "loreloop.text.grammars.sandbox_process")
            pipe = asyncio.subprocess.PIPE
            try:
                self.process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 20)
            except OSError as error:
                raise Unavailable(
                    f"No process to try grammars in could be started ({error}); try again later."
                ) from error
        return self.process

    async def close(self) -> None:
        """Ends the process; the next question starts another one."""
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

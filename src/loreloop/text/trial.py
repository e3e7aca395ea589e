"""Untrusted grammars are tried in a process of their own first: the library has no bound that holds for all of them.

A grammar that takes too much computing or memory there ends that process, and the request that brought it; the next
one gets a new process. What was tried is remembered. Knows no engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import OrderedDict
from typing import Any

import msgspec

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.link import EngineInfo
from loreloop.text.grammar import MAX_GRAMMAR_BYTES

MAX_SECONDS, MAX_BYTES = 0.5, 1 << 30  # of computing and of memory, for one grammar; ordinary ones take milliseconds
WAIT_SECONDS = 20.0  # for the answer, however busy the machine is
N_REMEMBERED = 256


class Rules(msgspec.Struct, frozen=True):
    """At most one is given."""

    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    regex: str | None = None


class Question(msgspec.Struct, frozen=True):
    """For the model in `folder`."""

    rules: Rules
    folder: str
    vocab_size: int
    stop_tokens: tuple[int, ...]


class Verdict(msgspec.Struct, frozen=True):
    """The grammar that an engine can be asked to follow, or why there is none."""

    grammar: str | None = None
    error: str | None = None


class GrammarTrial:
    """One process, started when first needed, that ends with this one; grammars are tried one by one."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None
        self.turn = asyncio.Lock()
        self.known: OrderedDict[bytes, Verdict] = OrderedDict()

    async def grammar_of(self, rules: Rules, info: EngineInfo) -> str | None:
        """The one that is given, as a grammar that can be followed in bounded time; BadRequest if it cannot."""
        if rules == Rules():
            return None
        asked = msgspec.json.encode(Question(rules, info.folder, info.vocab_size, info.eos_token_ids))
        if len(asked) > 2 * MAX_GRAMMAR_BYTES:
            raise BadRequest(f"The grammar or schema has {len(asked)} bytes; at most {MAX_GRAMMAR_BYTES} are followed.")
        async with self.turn:
            verdict = self.known.get(asked) or await self._tried(asked)
            self.known[asked] = verdict
            self.known.move_to_end(asked)
            if len(self.known) > N_REMEMBERED:
                self.known.popitem(last=False)
        if verdict.error is not None:
            raise BadRequest(verdict.error)
        return verdict.grammar

    async def _tried(self, asked: bytes) -> Verdict:
        line = b""
        try:
            process = await self._running()
            assert process.stdin
            assert process.stdout
            process.stdin.write(asked + b"\n")
            async with asyncio.timeout(WAIT_SECONDS):
                line = await process.stdout.readline()
        except (TimeoutError, ConnectionError, ValueError):
            pass
        finally:
            if not line.endswith(b"\n"):  # it has ended, or this request has before it was answered
                await self.close()
        if line.endswith(b"\n"):
            return msgspec.json.decode(line, type=Verdict)
        limit = f"{MAX_SECONDS:g} s of computing or {MAX_BYTES >> 20} MiB"
        return Verdict(error=f"The grammar or schema takes over {limit} to prepare; send a simpler one.")

    async def _running(self) -> asyncio.subprocess.Process:
        if self.process is None or self.process.returncode is not None:
            command = (sys.executable, "-m", "loreloop.text.trial_process")
            pipe = asyncio.subprocess.PIPE
            self.process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 20)
        return self.process

    async def close(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

"""Samples in flight and the results nobody has fetched yet, in memory.

A sample changes no model, so nothing of it is journaled: after the death of an engine it is simply sent again, a
stream with what it had shown already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from loreloop.host.completions import SAMPLE
from loreloop.protocol.link import Token
from loreloop.protocol.sampling import Partial, SampleOp, SampleResult
from loreloop.protocol.token_ids import n_ids, pack_ids, pack_logprobs
from loreloop.protocol.training import Chunk, Failure, ImageChunk, length_of
from loreloop.store import accounts
from loreloop.store.account_rows import Account, Spent
from loreloop.store.rows import KeyUsage


class Charge(NamedTuple):
    """What an account has to bear."""

    account: Account
    spent: Spent


@dataclass(frozen=True)
class Recording:
    """Where a request's sequences are recorded for later training."""

    session_id: str
    sequence_ids: tuple[str, ...]


@dataclass
class Ticket:
    """One request from its arrival until its result has expired."""

    op: SampleOp
    base_model: str
    recording: Recording | None
    tokens: list[Token] = field(default_factory=list)
    result: SampleResult | Failure | None = None
    created: float = field(default_factory=time.time)
    ended: float = 0.0
    engine: int | None = None  # the number of the one that draws it; None: it waits for one
    n_deaths: int = 0  # engines that this request has outlived
    n_given: int = 0  # how often an engine was given it
    avoided: set[int] = field(default_factory=set)  # the numbers of engines that could not draw it
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, tokens: tuple[Token, ...]) -> None:
        """Takes tokens of a stream and wakes whoever reads it."""
        self.tokens += tokens
        self._wake()

    def end(self, result: SampleResult | Failure, now: float) -> None:
        """The first end counts. A result is kept for long, the images that were asked about are not."""
        if self.result is None:
            self.result, self.ended = result, now
            self.op = msgspec.structs.replace(self.op, prompt=tuple(map(_lengths_alone, self.op.prompt)))
            self._wake()

    def spent(self, result: SampleResult | Failure, now: float) -> KeyUsage:
        """What the request has used. Of one that was cut short that is what its stream had shown."""
        if isinstance(result, Failure):
            # Without a token shown the prompt may never have been computed, and is not charged.
            n_prompt, n_drawn = length_of(self.op.prompt) if self.tokens else 0, len(self.tokens)
        else:
            n_prompt = length_of(self.op.prompt)
            n_drawn = sum(n_ids(sequence.tokens) for sequence in result.sequences)
        return KeyUsage(requests=1, prompt_tokens=n_prompt, generated_tokens=n_drawn, last_used=now)

    def charged(self, result: SampleResult | Failure, now: float) -> Charge:
        """The same for the account of the request's session. A prompt counts once, however many samples are drawn."""
        spent, n_cached = self.spent(result, now), 0 if isinstance(result, Failure) else result.cache_hit_tokens
        session_id, is_tinkers, _ = self.op.request_id.partition(SAMPLE)
        return Charge(
            Account(accounts.hour_of(now), self.op.owner, session_id if is_tinkers else "", self.base_model),
            Spent(
                prompt_tokens=max(0, spent.prompt_tokens - n_cached),
                cached_tokens=n_cached,
                generated_tokens=spent.generated_tokens,
            ),
        )

    def _wake(self) -> None:
        # Everyone who waits holds the old event; a new one is for whoever comes from now on.
        self.changed.set()
        self.changed = asyncio.Event()

    async def wait(self, seconds: float | None) -> SampleResult | Failure | None:
        """The result, or None if there is none after a while."""
        try:
            async with asyncio.timeout(seconds):
                while self.result is None:
                    await self.changed.wait()
        except TimeoutError:
            pass
        return self.result

    async def stream(self) -> AsyncIterator[Token | SampleResult | Failure]:
        """Every token as it comes, at last the result."""
        n_shown = 0
        # The reader may be slower than the engine: tokens that came with the result are still to be shown before it.
        while self.result is None or n_shown < len(self.tokens):
            if n_shown == len(self.tokens):
                await self.changed.wait()
            while n_shown < len(self.tokens):
                yield self.tokens[n_shown]
                n_shown += 1
        yield self.result

    def resumed(self) -> SampleOp:
        """The operation for a new engine: what a stream has shown is not drawn again."""
        if not self.tokens:
            return self.op
        partials = []
        for index in range(self.op.num_samples):
            shown = [token for token in self.tokens if token.sample_index == index]
            logprobs = pack_logprobs([token.logprob for token in shown])
            partials.append(Partial(pack_ids([token.token for token in shown]), logprobs))
        return msgspec.structs.replace(self.op, resume=tuple(partials))


def _lengths_alone(chunk: Chunk) -> Chunk:
    return msgspec.structs.replace(chunk, data=b"") if isinstance(chunk, ImageChunk) else chunk

"""Asks a sampling client for answers: which weights are the newest, how much may be asked at once, and answers that go
on under newer weights than those they began with.

Speaks the Tinker SDK's sampling client only, or anything that has its `sample`. Knows no conversations and no rewards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import tinker

from loreloop.learn.rollouts.traces import followed_by
from loreloop.learn.rollouts.values import Sampled

Stop = list[int] | list[str]
REFUSED = tinker.AuthenticationError  # of a key that was revoked: no further request will be answered


class Sampler(Protocol):
    """What is used of the SDK's sampling client."""

    def sample(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams
    ) -> Awaitable[tinker.SampleResponse]:
        """Answers to a prompt."""
        ...


@dataclass(frozen=True)
class AnswerLimits:
    """`most_tokens` bounds one answer, `most_episode_tokens` all answers of an episode together, `most_turns` how many
    there are, and `window` the prompt with all that follows it, where the model's is known. With `piece`, an answer is
    asked for in pieces of so many tokens, each from the newest weights; stop strings (not ids) could lie across two
    pieces, so answers with those come whole."""

    most_tokens: int = 256
    most_episode_tokens: int | None = None
    most_turns: int = 8
    temperature: float = 1.0
    piece: int | None = None
    seed: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if min(self.most_tokens, self.most_turns, self.piece or 1, self.most_episode_tokens or 1) < 1:
            raise ValueError("every limit on answers is 1 or more")

    def left(self, n_sampled: int) -> int:
        """How many tokens the next answer of an episode may have, after so many."""
        whole = self.most_tokens if self.most_episode_tokens is None else self.most_episode_tokens - n_sampled
        return max(0, min(self.most_tokens, whole))

    def behind(self, n_tokens: int) -> AnswerLimits | None:
        """The limits as far as the model's window goes behind so many tokens; None where it is full. A request for more
        would be refused, and the whole episode lost with it."""
        if self.window is None:
            return self
        room = self.window - n_tokens
        return replace(self, most_tokens=min(self.most_tokens, room)) if room > 0 else None


@dataclass(frozen=True)
class Drawn:
    """A whole answer. `ended`: it came to its end, and was not cut off at the most tokens."""

    said: Sampled
    ended: bool


class Policy:
    """The weights that sample now, and their number, which grows by one with each step that was learned."""

    def __init__(self, sampler: Sampler, revision: int = 0) -> None:
        self.sampler, self.revision = sampler, revision

    def renew(self, sampler: Sampler) -> None:
        """New weights; what is being drawn goes on with those it was asked of, up to its next piece."""
        self.sampler, self.revision = sampler, self.revision + 1


class Requests:
    """Bounds what is asked at once: `most` answers, and `most_tokens` of prompts and answers together.

    A request larger than the whole bound is let in alone, since it could never come otherwise.
    """

    def __init__(self, policy: Policy, *, most: int = 256, most_tokens: int | None = None) -> None:
        self.policy, self.most, self.most_tokens = policy, most, most_tokens
        self.n_open = self.tokens_open = 0
        self.changed, self.turn = asyncio.Condition(), asyncio.Lock()

    async def draw(self, prompt: tinker.ModelInput, stop: Stop, limits: AnswerLimits) -> Drawn:
        """One answer to a prompt."""
        (begun,) = await self.begin(prompt, 1, stop, limits)
        return await self.finish(prompt, begun, stop, limits)

    async def begin(self, prompt: tinker.ModelInput, n: int, stop: Stop, limits: AnswerLimits) -> list[Drawn]:
        """The first pieces of `n` answers to one prompt, in one request, so that the prompt is read once."""
        return await self._asked(prompt, n, stop, replace(limits, most_tokens=_piece(stop, limits)))

    async def finish(self, prompt: tinker.ModelInput, drawn: Drawn, stop: Stop, limits: AnswerLimits) -> Drawn:
        """The whole answer that has begun so, each further piece from the weights that are the newest then."""
        while not drawn.ended and (left := limits.most_tokens - len(drawn.said.tokens)) > 0:
            so_far = followed_by(prompt, drawn.said.tokens)
            # Another seed for each piece: the same one would begin the same random numbers again.
            seed = None if limits.seed is None else limits.seed + 1_000_003 * len(drawn.said.tokens)
            piece = replace(limits, most_tokens=min(left, _piece(stop, limits)), seed=seed)
            (more,) = await self._asked(so_far, 1, stop, piece)
            drawn = Drawn(_joined(drawn.said, more.said), more.ended)
        return drawn

    async def _asked(self, prompt: tinker.ModelInput, n: int, stop: Stop, limits: AnswerLimits) -> list[Drawn]:
        params = tinker.SamplingParams(
            max_tokens=limits.most_tokens, temperature=limits.temperature, stop=stop, seed=limits.seed
        )
        async with self._room(n, n * (prompt.length + limits.most_tokens)):
            # Read together, so that no answer is told to be of weights that came between.
            sampler, revision = self.policy.sampler, self.policy.revision
            response = await sampler.sample(prompt=prompt, num_samples=n, sampling_params=params)
        return [_drawn(sequence, revision) for sequence in response.sequences]

    @asynccontextmanager
    async def _room(self, n: int, n_tokens: int) -> AsyncIterator[None]:
        # In turns: a large request would never come in if small ones could pass it.
        async with self.turn, self.changed:
            await self.changed.wait_for(lambda: self._fits(n, n_tokens))
            self.n_open, self.tokens_open = self.n_open + n, self.tokens_open + n_tokens
        try:
            yield
        finally:
            # Without the condition's lock: waiting for it here could be cancelled, and the room be lost for good.
            self.n_open, self.tokens_open = self.n_open - n, self.tokens_open - n_tokens
            self._tell()

    def _fits(self, n: int, n_tokens: int) -> bool:
        # Whatever its size: a request that is larger than the bound would otherwise wait for ever.
        if self.n_open == 0:
            return True
        within = self.most_tokens is None or self.tokens_open + n_tokens <= self.most_tokens
        return within and self.n_open + n <= self.most

    def _tell(self) -> None:
        async def notify() -> None:
            async with self.changed:
                self.changed.notify_all()

        task = asyncio.ensure_future(notify())
        # Kept until it is done: a task that nobody holds may be collected before it runs.
        _telling.add(task)
        task.add_done_callback(_telling.discard)


_telling: set[asyncio.Task[None]] = set()


def _piece(stop: Stop, limits: AnswerLimits) -> int:
    """How many tokens to ask for at once."""
    # An id cannot lie across two pieces, a string can: its first half would then have been taken for a part of the
    # answer.
    whole = limits.piece is None or any(isinstance(mark, str) for mark in stop)
    return limits.most_tokens if whole or limits.piece is None else min(limits.piece, limits.most_tokens)


def _drawn(sequence: tinker.SampledSequence, revision: int) -> Drawn:
    # A ratio to unknown probabilities cannot be taken, and zeros in their place would look like perfect certainty.
    if sequence.logprobs is None:
        raise ValueError("the server gave no log-probabilities of what it sampled, so nothing can be learned from it")
    tokens = tuple(sequence.tokens)
    said = Sampled(tokens, tuple(sequence.logprobs), (revision,) * len(tokens))
    return Drawn(said, sequence.stop_reason == "stop")


def _joined(first: Sampled, then: Sampled) -> Sampled:
    return Sampled(first.tokens + then.tokens, first.logprobs + then.logprobs, first.revisions + then.revisions)

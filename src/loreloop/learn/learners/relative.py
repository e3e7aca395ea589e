"""What DPO and KTO share: a loss over how much likelier answers have become than they were where the run began.

The reference is a client of its own that is never trained. What it says of an answer is found once, a step before it is
needed, and kept. Knows no formula; `surrogate.py` turns a formula's slopes into a pass.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import tinker

from loreloop.learn.clients import adam_of
from loreloop.learn.learners.surrogate import LOSS, Answers, Floats, logprobs_of, n_tokens, surrogate
from loreloop.learn.plan import Moment, Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.runner import TOKENS, Metrics
from loreloop.text.conversation import Conversation

E = TypeVar("E")


@dataclass(frozen=True)
class Posed:
    """An answer to a prompt; `key` is the same whenever both are."""

    key: Hashable
    prompt: Conversation
    answer: Conversation


@dataclass(frozen=True)
class Judged:
    """The slope of a batch's loss by each answer's log-probability, and what is to be told of it, `loss` too."""

    slopes: Floats
    metrics: Metrics


@dataclass(frozen=True)
class _Ready:
    """The data of a batch's answers, and their log-probabilities by the reference."""

    answers: Answers
    reference: Floats


class Relative(ABC, Generic[E]):
    """A learner whose loss is over answers' log-probabilities relative to the reference's."""

    ahead = 1

    def __init__(
        self, plan: Plan, client: tinker.TrainingClient, reference: tinker.TrainingClient, renderer: Renderer
    ) -> None:
        self.plan, self.client, self.reference, self.renderer = plan, client, reference, renderer
        self.known: dict[Hashable, float] = {}  # by an answer's key
        self.coming: dict[int, asyncio.Task[_Ready]] = {}  # by step

    @abstractmethod
    def posed(self, batch: Sequence[E]) -> list[Posed]:
        """The answers over which the loss of a batch is, in its order."""

    @abstractmethod
    def judged(self, relative: Floats, batch: Sequence[E]) -> Judged:
        """The loss of a batch; `relative` has log π − log π_ref of each of its answers."""

    def prepare(self, batch: Sequence[E], at: Moment) -> None:
        """Begins to ask the reference."""
        self.coming[at.step] = asyncio.ensure_future(self._ready(batch))

    async def step(self, batch: Sequence[E], at: Moment) -> Awaitable[Metrics]:
        """A forward pass, whose log-probabilities say which way each answer is to go; then a pass and a step."""
        # Popped, since a run of many steps would otherwise keep every batch's data to its end.
        ready = await self.coming.pop(at.step)
        judged = self.judged(await logprobs_of(self.client, ready.answers) - ready.reference, batch)
        # Both are handed in before either is waited for: the server then goes from one to the other without a pause.
        passed = self.client.forward_backward(surrogate(ready.answers, judged.slopes), LOSS)
        stepped = self.client.optim_step(adam_of(self.plan, at.learning_rate))
        told = {f"train_{name}": value for name, value in judged.metrics.items()}
        return _after(told | {TOKENS: float(n_tokens(ready.answers))}, passed, stepped)

    async def evaluate(self, examples: Sequence[E]) -> Metrics:
        """The same measures of held-out examples, in batches; each one's mean over the batches that have it, by the
        examples in each."""
        size, sums, counts = self.plan.batch_size, Metrics(), Metrics()
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            ready = await self._ready(batch)
            judged = self.judged(await logprobs_of(self.client, ready.answers) - ready.reference, batch)
            for name, value in judged.metrics.items():
                # The last batch may be smaller than the others, and must not count as much as they do.
                sums[name] = sums.get(name, 0.0) + value * len(batch)
                # A batch of wanted answers alone has no margin, which does not make the margin of the others smaller.
                counts[name] = counts.get(name, 0.0) + len(batch)
        return {f"valid_{name}": value / counts[name] for name, value in sums.items()}

    async def _ready(self, batch: Sequence[E]) -> _Ready:
        posed = self.posed(batch)
        answers = [self.renderer.going_on(one.prompt, one.answer) for one in posed]
        # The reference never changes, so in later epochs its pass over a known answer would only say the same again.
        new = {one.key: data for one, data in zip(posed, answers, strict=True) if one.key not in self.known}
        if new:
            found = await logprobs_of(self.reference, list(new.values()))
            self.known |= zip(new, found.tolist(), strict=True)
        return _Ready(answers, np.array([self.known[one.key] for one in posed]))

    def state(self) -> dict[str, Any]:
        """Nothing: what the reference says can be asked again."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is to be taken back."""


async def _after(metrics: Metrics, *work: Awaitable[Any]) -> Metrics:
    for one in work:
        await one
    return metrics

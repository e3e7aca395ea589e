"""Answers of named weights to prompts, and how likely weights find given tokens: what gate and shadow look at.

Over the Tinker SDK, with the model's own template. Knows no rule of the gate.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import tinker

from loreloop.learn.examples import Task
from loreloop.learn.pictures import counted, urls_of
from loreloop.learn.refusals import in_our_words
from loreloop.learn.rendering import Renderer
from loreloop.learn.rewards.reward import Answer
from loreloop.protocol.episodes import Turn

MOST_LOG_RATIO = 20.0


@dataclass(frozen=True)
class Said:
    """An answer's tokens, and at each place the likeliest ones with their probabilities."""

    tokens: tuple[int, ...]
    likely: tuple[tuple[tuple[int, float], ...], ...]


@dataclass(frozen=True)
class Room:
    """Where to ask: the SDK's service, and the renderer of the base model."""

    service: tinker.ServiceClient
    renderer: Renderer

    async def sampler(self, target: str) -> tinker.SamplingClient:
        """Of a `tinker://` path, or of a base model by its name."""
        if target.startswith("tinker://"):
            return await self.service.create_sampling_client(model_path=target)
        return await self.service.create_sampling_client(base_model=target)

    async def answers(self, target: str, tasks: Sequence[Task], most_tokens: int) -> list[Answer]:
        """The likeliest answer to each task. Raises as `in_our_words` does where the server gives none."""
        params = tinker.SamplingParams(max_tokens=most_tokens, temperature=0.0, seed=0, stop=self.renderer.stop)
        with in_our_words(f"answers of {target}"):
            sampler = await self.sampler(target)
            renderer = await self._seeing(sampler, tasks)
            asked = [sampler.sample(renderer.prompt(task.prompt), 1, params) for task in tasks]
            found = await asyncio.gather(*asked)
        return [
            self.renderer.answer(one.sequences[0].tokens, task.prompt) for one, task in zip(found, tasks, strict=True)
        ]

    async def likely_answers(self, target: str, tasks: Sequence[Task], most_tokens: int, n_likely: int) -> list[Said]:
        """The likeliest answer to each task token by token, and how likely others were at each place. A server that
        does not tell that is taken to have been sure of what it said."""
        params = tinker.SamplingParams(max_tokens=most_tokens, temperature=0.0, seed=0, stop=self.renderer.stop)
        with in_our_words(f"answers of {target}"):
            sampler = await self.sampler(target)
            renderer = await self._seeing(sampler, tasks)
            asked = [
                sampler.sample(renderer.prompt(task.prompt), 1, params, topk_sample_logprobs=n_likely) for task in tasks
            ]
            found = [one.sequences[0] for one in await asyncio.gather(*asked)]
        return [Said(tuple(one.tokens), likely_of(one)) for one in found]

    async def _seeing(self, sampler: tinker.SamplingClient, tasks: Sequence[Task]) -> Renderer:
        """The renderer with the images that the tasks show, whose sizes in tokens only the server knows."""
        urls = urls_of(task.prompt for task in tasks)
        if not urls:
            return self.renderer
        return self.renderer.seeing(await counted(sampler, urls, self.renderer.stop[0]))

    async def divergence(self, candidate: str, champion: str, turns: Sequence[Turn]) -> float | None:
        """Nats a token from the champion to the candidate, over recorded answers: the mean of r − 1 − log r with
        r = p_candidate / p_champion (Schulman's k3, which is never below 0). None where no turn has tokens."""
        rows = [turn for turn in turns if turn.prompt and turn.tokens]
        if not rows:
            return None
        ratios: list[float] = []
        with in_our_words(f"log-probabilities of {candidate} and {champion}"):
            samplers = [await self.sampler(candidate), await self.sampler(champion)]
        for turn in rows:
            ids = tinker.ModelInput.from_ints([*turn.prompt, *turn.tokens])
            with in_our_words(f"log-probabilities of {candidate} and {champion}"):
                new, old = await asyncio.gather(*(sampler.compute_logprobs(ids) for sampler in samplers))
            answer = slice(len(turn.prompt), None)
            pairs = zip(new[answer], old[answer], strict=True)
            ratios += [one - other for one, other in pairs if one is not None and other is not None]
        logs = np.clip(np.array(ratios), -MOST_LOG_RATIO, MOST_LOG_RATIO)
        return float((np.exp(logs) - 1 - logs).mean()) if ratios else None


def likely_of(sequence: tinker.types.SampledSequence) -> tuple[tuple[tuple[int, float], ...], ...]:
    """What a sampled answer might have been at each place."""
    rows = sequence.topk_logprobs or [None] * len(sequence.tokens)
    return tuple(
        tuple((id, math.exp(logprob)) for id, logprob in row) if row else ((token, 1.0),)
        for row, token in zip(rows, sequence.tokens, strict=True)
    )


@dataclass(frozen=True)
class RememberingRoom(Room):
    """A room that asks nobody the same twice, for one look at a candidate: gate and guards see the same answers, which
    the server gives once."""

    said: dict[tuple[str, int, bytes], Answer] = field(default_factory=dict)

    async def answers(self, target: str, tasks: Sequence[Task], most_tokens: int) -> list[Answer]:
        """As in any room."""
        keys = [(target, most_tokens, msgspec.json.encode(task.item)) for task in tasks]
        new = {key: task for key, task in zip(keys, tasks, strict=True) if key not in self.said}
        if new:
            self.said.update(zip(new, await super().answers(target, [*new.values()], most_tokens), strict=True))
        return [self.said[key] for key in keys]


@dataclass(frozen=True)
class RehearsingRoom(Room):
    """A room that asks the newest champion for its likely answers once: the weights of all persons that begin with it
    rehearse the same. Of one before nothing is kept."""

    said: dict[tuple[str, int, int, bytes], Said] = field(default_factory=dict)

    async def likely_answers(self, target: str, tasks: Sequence[Task], most_tokens: int, n_likely: int) -> list[Said]:
        """As in any room."""
        for old in [key for key in self.said if key[0] != target]:
            del self.said[old]
        keys = [(target, most_tokens, n_likely, msgspec.json.encode(task.item)) for task in tasks]
        new = {key: task for key, task in zip(keys, tasks, strict=True) if key not in self.said}
        if new:
            found = await super().likely_answers(target, [*new.values()], most_tokens, n_likely)
            self.said.update(zip(new, found, strict=True))
        return [self.said[key] for key in keys]

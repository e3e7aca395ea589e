"""Takes environments of the Tinker cookbook as they are: any `EnvGroupBuilder`, played by the cookbook's own runner.

Needs the package `tinker-cookbook`. Knows nothing of what an environment does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import tinker
from tinker_cookbook.completers import StopCondition, TokenCompleter, TokensWithLogprobs
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.types import (
    PARSE_ERROR_MASKED_METRIC_KEY,
    Env,
    EnvGroupBuilder,
    RLDataset,
    Trajectory,
    TrajectoryGroup,
    Transition,
)

from loreloop.learn.rollouts.drawing import AnswerLimits, Requests
from loreloop.learn.rollouts.values import Context, Group, Observed, Rollout, Sampled, trouble_with


@dataclass
class Numbered(TokensWithLogprobs):
    """Tokens with the revision that drew each of them."""

    revisions: tuple[int, ...] = ()


class Completer(TokenCompleter):
    """The policy as the cookbook asks it: in turn, within the bounds on what is asked at once, in pieces if wanted."""

    def __init__(self, requests: Requests, limits: AnswerLimits) -> None:
        self.requests, self.limits, self.n_asked = requests, limits, 0

    async def __call__(
        self, model_input: tinker.ModelInput, stop: StopCondition, *, max_tokens: int | None = None
    ) -> TokensWithLogprobs:
        limits, self.n_asked = self._own(max_tokens), self.n_asked + 1
        drawn = await self.requests.draw(model_input, stop, limits)
        said = drawn.said
        return Numbered([*said.tokens], [*said.logprobs], "stop" if drawn.ended else "length", said.revisions)

    def _own(self, max_tokens: int | None) -> AnswerLimits:
        most = self.limits.most_tokens if max_tokens is None else min(max_tokens, self.limits.most_tokens)
        seed = None if self.limits.seed is None else self.limits.seed + 31 * self.n_asked
        return replace(self.limits, most_tokens=most, seed=seed)


@dataclass(frozen=True)
class CookbookPlayer:
    """Plays a builder's group; stands in the place of `Player` where tasks are builders."""

    requests: Requests
    limits: AnswerLimits

    async def group(self, builder: EnvGroupBuilder, number: int) -> Group:
        """All environments of a builder, with the rewards that it gives to the whole group."""
        seed = None if self.limits.seed is None else self.limits.seed + 7_919 * number
        completer = Completer(self.requests, replace(self.limits, seed=seed))
        return group_of(await do_group_rollout(builder, completer), number)

    def for_looking(self, n: int) -> Self:
        """At temperature 0 for a single episode; how many there are stays the builder's affair."""
        temperature = 0.0 if n == 1 else self.limits.temperature
        return replace(self, limits=replace(self.limits, temperature=temperature, piece=None))


def group_of(trajectories: TrajectoryGroup, number: int) -> Group:
    """The cookbook's trajectories as rollouts; each one's reward is the sum that the cookbook learns from."""
    rewards = trajectories.get_total_rewards()
    rollouts = [
        _rollout(trajectory, reward, f"{number}.{member}")
        for member, (trajectory, reward) in enumerate(zip(trajectories.trajectories_G, rewards, strict=True))
    ]
    troubles = tuple(dict.fromkeys(f"{e.error_type}: {e.error_message}" for e in trajectories.rollout_errors))
    return Group(None, tuple(rollouts), len(trajectories.rollout_errors), troubles)


def _rollout(trajectory: Trajectory, reward: float, name: str) -> Rollout:
    # An observation without tokens is an episode that ended before it began, such as one whose prompt is too long.
    spoken = [transition for transition in trajectory.transitions if transition.ob.length and transition.ac.tokens]
    *earlier, last = [*_contexts(spoken)] or [Context(tinker.ModelInput.empty(), ())]
    return Rollout(
        prompt=last.prompt,
        turns=last.turns,
        reward=reward,
        parts=_metrics(trajectory.transitions),
        ended=bool(spoken) and spoken[-1].ac.stop_reason == "stop",
        episode=name,
        group=name.rpartition(".")[0],
        trouble=trouble_with(reward),
        earlier=tuple(earlier),
    )


def _contexts(transitions: Sequence[Transition]) -> Iterator[Context]:
    """Unbroken rows: an observation goes on in the row before it as long as it begins with all of that row's tokens."""
    prompt: tinker.ModelInput | None = None
    row: list[Any] = []
    turns: list[Observed | Sampled] = []
    for transition in transitions:
        seen = _units(transition.ob)
        new = seen[len(row) :]
        # A picture that comes between two answers has no place among observed tokens, so a new row begins with it.
        if prompt is not None and seen[: len(row)] == row and all(isinstance(unit, int) for unit in new):
            turns.append(Observed(tuple(new)))
        else:
            if prompt is not None:
                yield Context(prompt, tuple(turns))
            prompt, turns = transition.ob, []
        turns.append(_sampled(transition))
        row = [*seen, *transition.ac.tokens]
    if prompt is not None:
        yield Context(prompt, tuple(turns))


def _units(observed: tinker.ModelInput) -> list[Any]:
    """Tokens one by one, and images whole, to be compared."""
    units: list[Any] = []
    for chunk in observed.chunks:
        units += chunk.tokens if isinstance(chunk, tinker.EncodedTextChunk) else [chunk]
    return units


def _sampled(transition: Transition) -> Sampled:
    said = transition.ac
    revisions = said.revisions if isinstance(said, Numbered) else (0,) * len(said.tokens)
    masked = float(transition.metrics.get(PARSE_ERROR_MASKED_METRIC_KEY, 0.0)) >= 1.0
    return Sampled(tuple(said.tokens), tuple(said.logprobs), revisions, reward=transition.reward, learned=not masked)


def _metrics(transitions: Sequence[Transition]) -> dict[str, float]:
    """What the environments measured, each metric at its last."""
    return {name: float(value) for transition in transitions for name, value in transition.metrics.items()}


@dataclass(frozen=True)
class Alike(EnvGroupBuilder):
    """The builder of a single kind of the cookbook's `Env`: a group is `n` of those that `make` makes."""

    make: Callable[[], Env]
    n: int = 8

    async def make_envs(self) -> Sequence[Env]:
        """One for each episode, since an `Env` is used once."""
        return [self.make() for _ in range(self.n)]


def builders_of(dataset: RLDataset) -> list[EnvGroupBuilder]:
    """All groups of a dataset of the cookbook's, batch by batch."""
    return [builder for index in range(len(dataset)) for builder in dataset.get_batch(index)]

"""What was sampled for training: rollouts of one or several turns, and groups of them that answer the same task.

Every token that a model said keeps the log-probability it was drawn with and the revision of the weights that drew it.
Knows no learner and no client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import tinker

from loreloop.learn.examples import Task


@dataclass(frozen=True)
class Observed:
    """Tokens that a model was shown between its answers: a tool's result, a user's next words. Never learned from."""

    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Sampled:
    """One answer of a model, token by token as it was drawn.

    `logprobs` are natural logarithms under the weights that drew each token, `revisions` the numbers of these weights.
    `reward` is what this turn earned. `learned` is False for what counts in the episode and must not be learned from.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    revisions: tuple[int, ...]
    reward: float = 0.0
    learned: bool = True

    def __post_init__(self) -> None:
        # A row that is out of step by one would teach quietly wrong things, and no loss could notice.
        if not len(self.tokens) == len(self.logprobs) == len(self.revisions):
            raise ValueError("every sampled token has one log-probability and one revision")


@dataclass(frozen=True)
class Context:
    """A prompt and what followed it in one unbroken row of tokens."""

    prompt: tinker.ModelInput
    turns: tuple[Observed | Sampled, ...]


@dataclass(frozen=True)
class Rollout:
    """One episode: what came first, then turns of both sides in their order.

    An environment that tells the past in other words than it happened breaks the row; what came before the last break
    is in `earlier`, in order.

    `reward` is the whole episode's, `parts` what it was put together from. `ended` is False where the last answer was
    cut off. `trouble` says why there is no reward; such a rollout is counted and not learned from.
    """

    prompt: tinker.ModelInput
    turns: tuple[Observed | Sampled, ...]
    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    ended: bool = True
    episode: str = ""
    group: str = ""
    trouble: str | None = None
    earlier: tuple[Context, ...] = ()

    @property
    def contexts(self) -> tuple[Context, ...]:
        """All unbroken rows of the episode, the last one at the end."""
        return (*self.earlier, Context(self.prompt, self.turns))

    @property
    def answers(self) -> tuple[Sampled, ...]:
        """The turns that the model said."""
        return tuple(turn for row in self.contexts for turn in row.turns if isinstance(turn, Sampled))

    @property
    def n_sampled(self) -> int:
        """Tokens that the model said, over all turns."""
        return sum(len(turn.tokens) for turn in self.answers)

    @property
    def oldest(self) -> int:
        """The oldest revision that drew a token of it; 0 where none was drawn."""
        return min((revision for turn in self.answers for revision in turn.revisions), default=0)


@dataclass(frozen=True)
class Group:
    """Rollouts whose rewards are compared with one another, since they answer the same task.

    `n_failed` counts those that a failed or cancelled sample has taken away; `troubles` says why, one for each kind.
    """

    task: Task | None
    rollouts: tuple[Rollout, ...]
    n_failed: int = 0
    troubles: tuple[str, ...] = ()

    @property
    def graded(self) -> tuple[Rollout, ...]:
        """The rollouts that have a reward and at least one token to learn from."""
        # A missing reward is not a reward of 0: counted as one, it would pull the mean that the others are compared
        # with.
        return tuple(rollout for rollout in self.rollouts if rollout.trouble is None and rollout.n_sampled)


def trouble_with(reward: float) -> str | None:
    """Why a reward cannot be learned from: one number that is none would make the whole group's advantages none."""
    return None if math.isfinite(reward) else f"the environment's reward is {reward}"

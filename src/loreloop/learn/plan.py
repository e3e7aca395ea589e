"""How long a run is, in which order it reads its examples, and how large each step is. Plain values and arithmetic.

Knows no learner in particular, no server and no client.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

E = TypeVar("E")
_LARGE = 1 << 31


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a run's course depends on, beside its learner and its examples. Adam's numbers are the cookbook's."""

    base_model: str
    name: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z", description="Begins the names of what the run saves."),
    ] = "learned"
    start: (
        Annotated[
            str, Meta(description="Saved weights (tinker://…/weights/…) to begin from, in place of the base model.")
        ]
        | None
    ) = None
    rank: Annotated[int, Meta(ge=1, lt=_LARGE, description="The adapter's rank.")] = 32
    seed: Annotated[
        int, Meta(ge=0, lt=_LARGE, description="Of the adapter's first weights and the examples' order.")
    ] = 0
    train_mlp: Annotated[bool, Meta(description="Adapt the feed-forward layers.")] = True
    train_attn: Annotated[bool, Meta(description="Adapt attention.")] = True
    train_unembed: Annotated[bool, Meta(description="Adapt the head over the vocabulary.")] = True
    batch_size: Annotated[int, Meta(ge=1, lt=_LARGE, description="Examples of a step.")] = 8
    epochs: Annotated[int, Meta(ge=1, lt=_LARGE, description="How often all examples are read.")] = 1
    shuffled: Annotated[bool, Meta(description="Mix the examples; without it, they come in the file's order.")] = True
    steps: (
        Annotated[int, Meta(ge=1, lt=_LARGE, description="Steps of the whole run, however many epochs that takes.")]
        | None
    ) = None
    learning_rate: Annotated[float, Meta(gt=0, le=1, description="The largest learning rate of the run.")] = 1e-4
    schedule: Annotated[
        Literal["constant", "linear", "cosine"], Meta(description="How the rate falls to its final share.")
    ] = "linear"
    warmup_steps: Annotated[int, Meta(ge=0, description="Steps over which the rate rises.")] = 0
    final_share: Annotated[float, Meta(ge=0, le=1, description="What is left of the rate in the end.")] = 0.0
    beta1: Annotated[float, Meta(ge=0, lt=1, description="Adam's mean of gradients.")] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1, description="Adam's mean of their squares.")] = 0.95
    eps: Annotated[float, Meta(gt=0, description="Adam's smallest divisor.")] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0, description="Share of the weights that a step takes away.")] = 0.0
    grad_clip_norm: Annotated[float, Meta(ge=0, description="The largest norm of a gradient; 0: any.")] = 0.0
    save_every: Annotated[int, Meta(ge=1, description="Steps between two states to resume from.")] = 50
    eval_every: Annotated[
        int, Meta(ge=0, description="Steps between two looks at held-out examples; 0: where an epoch ends.")
    ] = 0

    def steps_of_an_epoch(self, n_examples: int) -> int:
        """How many batches the examples make; the last one of an epoch may be smaller."""
        return math.ceil(n_examples / self.batch_size)

    def n_steps(self, n_examples: int) -> int:
        """The number of steps of the whole run."""
        return self.steps or self.epochs * self.steps_of_an_epoch(n_examples)

    def rate(self, step: int, n_steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        # A run's first step has the whole rate, and the step behind its last one would have the final share.
        done = (step - self.warmup_steps) / max(1, n_steps - self.warmup_steps)
        left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.schedule]
        return self.learning_rate * (self.final_share + (1 - self.final_share) * left)

    def moment(self, step: int, n_examples: int) -> Moment:
        """What is known of a step, counted from 0, before it is taken."""
        n_steps, of_an_epoch = self.n_steps(n_examples), self.steps_of_an_epoch(n_examples)
        return Moment(
            step=step,
            epoch=step // of_an_epoch,
            n_steps=n_steps,
            learning_rate=self.rate(step, n_steps),
            ends_epoch=(step + 1) % of_an_epoch == 0 or step + 1 == n_steps,
        )

    def batch(self, step: int, examples: Sequence[E]) -> list[E]:
        """The examples of a step. Every epoch reads all of them in an order of its own, which depends on the seed and
        on their number alone."""
        epoch, place = divmod(step, self.steps_of_an_epoch(len(examples)))
        order = _order(self.seed, epoch, len(examples)) if self.shuffled else range(len(examples))
        return [examples[index] for index in order[place * self.batch_size : (place + 1) * self.batch_size]]


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a plan; `step` and `epoch` count from 0."""

    step: int
    epoch: int
    n_steps: int
    learning_rate: float
    ends_epoch: bool  # the run's last step ends one as well


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> tuple[int, ...]:
    order = list(range(n))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return tuple(order)

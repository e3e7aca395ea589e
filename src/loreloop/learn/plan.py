"""How long a run is, in which order it reads its examples, and how large each step is. Plain values and arithmetic.

Knows no learner in particular and no server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal, TypeVar

import msgspec
import numpy as np
import tinker
from msgspec import Meta

E = TypeVar("E")
Count = Annotated[int, Meta(ge=1, lt=1 << 31)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`steps`, where given, is the whole number of steps, however many epochs that takes. The learning rate rises over
    `warmup_steps` and falls, by its schedule, to `final_share` of itself. Adam's other numbers are the cookbook's.

    `start` is a tinker:// path of saved weights to begin from in place of the base model. `name` begins the names under
    which weights are saved. With `eval_every` 0, held-out examples are looked at where an epoch ends only.
    """

    base_model: str
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")] = "learned"
    start: str | None = None
    rank: Count = 32
    seed: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True
    batch_size: Count = 8
    epochs: Count = 1
    shuffled: bool = True  # False: every epoch in the order of the file, for one that goes from easy to hard
    steps: Count | None = None
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: Annotated[int, Meta(ge=0)] = 0
    final_share: Share = 0.0
    beta1: Share = 0.9
    beta2: Share = 0.95
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    grad_clip_norm: Annotated[float, Meta(ge=0)] = 0.0  # 0: not clipped
    save_every: Count = 50  # steps between two saved states
    eval_every: Annotated[int, Meta(ge=0)] = 0

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

    def adam(self, learning_rate: float) -> tinker.AdamParams:
        """The numbers of one optimizer step."""
        return tinker.AdamParams(
            learning_rate=learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            grad_clip_norm=self.grad_clip_norm,
        )


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a plan; `step` and `epoch` count from 0."""

    step: int
    epoch: int
    n_steps: int
    learning_rate: float
    ends_epoch: bool  # the run's last step ends one as well


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, epoch]).permutation(n).tolist())

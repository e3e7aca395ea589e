"""A pull towards a reference revision: as a penalty on tokens, and as a budget that the penalty's strength follows.

With d = log π − log π_ref of a sampled token, the reverse divergence KL(π‖π_ref) is the mean of d, and that of
k3 = e^(−d) − 1 + d, which is never below zero (Schulman 2020, "Approximating KL divergence"). Pure functions; the
budget's rule is that of Ziegler et al. 2019 (arXiv 1909.08593).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loreloop.learn.learners.policy import Scored, Weighted

Array = NDArray[np.float64]
MOST_LOG_RATIO = 20.0
MOST_ERROR = 0.2  # by which one step may misjudge the budget, so that one odd batch does not move the strength far


@dataclass(frozen=True)
class KlPenalty:
    """`strength` β is in units of advantage per nat. `square` takes β·d off each token's advantage, which is the
    gradient of ½d²; `k3` takes β·(1 − e^(−d)), the gradient of k3, which is milder where the reference is likelier."""

    strength: float = 0.0
    form: Literal["square", "k3"] = "square"

    def taken_off(self, row: Weighted) -> Weighted:
        """The row with the penalty in its advantages."""
        if not self.strength:
            return row
        apart = apart_from(row.scored)
        # Where the reference finds a token likelier, e^(−d) − 1 grows without the clip, hence the bound in
        # `apart_from`.
        pull = apart if self.form == "square" else 1.0 - np.exp(-apart)
        return replace(row, advantages=row.advantages - self.strength * np.where(row.scored.trace.learned, pull, 0.0))


def apart_from(scored: Scored) -> Array:
    """d of every token, within ±20 nats; shape (N,)."""
    return np.clip(scored.old - scored.known("reference"), -MOST_LOG_RATIO, MOST_LOG_RATIO)


def divergence(scored: Sequence[Scored]) -> float:
    """The mean of k3 over all learned tokens, in nats a token; 0 where there are none."""
    kept = [apart_from(one)[one.trace.learned] for one in scored]
    apart = np.concatenate(kept) if kept else np.zeros(0)
    return float((np.exp(-apart) - 1.0 + apart).mean()) if apart.size else 0.0


def penalty_of(learner: object) -> KlPenalty | None:
    """A learner's penalty; None where it is of a kind that has none, such as distillation."""
    # The protocol of learners says nothing of penalties, so that one which needs none does not have to carry any.
    match learner:
        case object(kl=KlPenalty() as penalty):
            return penalty
        case _:
            return None


@dataclass(frozen=True)
class KlBudget:
    """`target` nats a token may lie between policy and reference. After each step the strength grows or falls by up to
    `rate` · 20 %, in proportion to how far the measured divergence is off. Past `most` nothing is to be learned any
    more."""

    target: float
    rate: float = 0.1
    most: float | None = None

    def __post_init__(self) -> None:
        if self.target <= 0 or (self.most is not None and self.most < self.target):
            raise ValueError("a budget of divergence is above 0, and the most that is allowed is not below it")

    def next_strength(self, strength: float, measured: float) -> float:
        """β for the next step: β · (1 + rate · clip(KL/target − 1, ±0.2))."""
        # In proportion and not by steps, since a strength that jumps between two values makes the reward swing with it.
        error = float(np.clip(measured / self.target - 1.0, -MOST_ERROR, MOST_ERROR))
        return strength * (1.0 + self.rate * error)

    def is_spent(self, measured: float) -> bool:
        """Whether to stop."""
        return self.most is not None and measured > self.most

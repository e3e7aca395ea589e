"""On-policy distillation: the model answers, and a teacher says of each token how likely it would have been.

    A_t = log π_teacher(y_t) − log π(y_t)

Its mean is −KL(π‖π_teacher), so that the policy gradient with these advantages goes down the reverse divergence on the
model's own answers, token by token and without any reward. Sources: Gu et al. 2023 (MiniLLM, arXiv 2306.08543);
Agarwal et al. 2023 (2306.13649). Each token answers for itself alone (a discount of 0), which is what keeps the
estimate's noise small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tinker

from loreloop.learn.learners.policy import (
    LossName,
    Need,
    Normalisation,
    ScoredGroup,
    Weighted,
    compared,
    datums_of,
    normalised,
)


@dataclass(frozen=True)
class Distill:
    """`strength` multiplies the advantage; none goes beyond ±`most` nats, so that one token which the teacher would
    never say does not drown the others. `reward` adds that much of GRPO's advantage, where tasks have rewards too."""

    strength: float = 1.0
    most: float = 10.0
    reward: float = 0.0
    normalisation: Normalisation = "tokens"

    loss: ClassVar[LossName] = "importance_sampling"

    @property
    def config(self) -> Mapping[str, float]:
        """This loss has no settings."""
        return {}

    @property
    def needs(self) -> frozenset[Need]:
        """The teacher's log-probabilities."""
        return frozenset({"teacher"})

    def datums(self, groups: Sequence[ScoredGroup]) -> list[tinker.Datum]:
        """One datum for each answer; groups only count where rewards do."""
        rows = []
        for group in groups:
            # Where no task has a reward the group is flat and its part is 0, so both kinds of task go one way.
            for row in compared(group, scaled=True):
                scored = row.scored
                # Against the policy as it was when it answered: what the loss then takes is the gradient at those
                # weights.
                nats = np.clip(scored.known("teacher") - scored.old, -self.most, self.most)
                own = self.strength * nats + self.reward * row.advantages
                rows.append(Weighted(scored, np.where(scored.trace.learned, own, 0.0)))
        return datums_of(normalised(rows, self.normalisation))

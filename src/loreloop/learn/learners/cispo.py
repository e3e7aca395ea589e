"""CISPO: REINFORCE with advantages of groups, in which every token keeps its gradient and only its weight is bounded.

    Σ_t sg(clip(r_t, low, high)) · A_i · log π_θ(y_t)        with r_t = π_θ/π_old, and sg what carries no gradient

Source: MiniMax 2025 (MiniMax-M1, arXiv 2506.13585). PPO's clip takes the gradient of a clipped token away altogether,
and tokens that begin a new thought are the first to be clipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import tinker

from loreloop.learn.corrections import NO_CORRECTION, Correction
from loreloop.learn.learners.kl import KlPenalty
from loreloop.learn.learners.policy import LossName, Need, Normalisation, ScoredGroup, compared, informative
from loreloop.learn.learners.shaping import needs_of, shaped


@dataclass(frozen=True)
class Cispo:
    """The bounds are on the ratio itself. The paper bounds it from above alone, so `low` is 0; it gives no number for
    the upper one, and 4 is what Tinker's own tutorial takes."""

    low: float = 0.0
    high: float = 4.0
    scaled: bool = True
    skip_flat: bool = True
    normalisation: Normalisation = "tokens"
    correction: Correction = NO_CORRECTION
    kl: KlPenalty = field(default_factory=KlPenalty)

    loss: ClassVar[LossName] = "cispo"

    @property
    def config(self) -> Mapping[str, float]:
        """The bounds, as the protocol's loss takes them."""
        return {"clip_low_threshold": self.low, "clip_high_threshold": self.high}

    @property
    def needs(self) -> frozenset[Need]:
        """The trainer's own log-probabilities for a correction, the reference's for a penalty."""
        return needs_of(self.correction, self.kl)

    def datums(self, groups: Sequence[ScoredGroup]) -> list[tinker.Datum]:
        """One datum for each answer that is better or worse than its group."""
        # A flat group has no advantage to learn from, but where there is a penalty its tokens still have that to learn.
        kept = informative(groups) if self.skip_flat and not self.kl.strength else groups
        rows = [row for group in kept for row in compared(group, scaled=self.scaled)]
        return shaped(rows, self.correction, self.kl, self.normalisation)

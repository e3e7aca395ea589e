"""GRPO: answers to the same task are compared with one another, and PPO's clip bounds each step.

    A_i = (R_i − mean R) / std R                               one advantage for all tokens of answer i of a group
    Σ_t min(r_t w_t A_i, clip(r_t, 1 − ε_low, 1 + ε_high) w_t A_i)      with r_t = π_θ/π_old and w_t of the correction

Sources: Shao et al. 2024 (arXiv 2402.03300); ε_high ≠ ε_low, the mean over tokens, the overlong penalty and the
filter of groups, Yu et al. 2025 (DAPO, 2503.14476). No value network and, unless it is asked for, no KL penalty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import tinker

from loreloop.learn.advantages import Overlong
from loreloop.learn.corrections import NO_CORRECTION, Correction
from loreloop.learn.learners.kl import KlPenalty
from loreloop.learn.learners.policy import (
    LossName,
    Need,
    Normalisation,
    Scored,
    ScoredGroup,
    Weighted,
    compared,
    informative,
)
from loreloop.learn.learners.shaping import needs_of, shaped


@dataclass(frozen=True)
class Grpo:
    """GRPO with its published defaults; `dapo` gives DAPO's. `scaled` False leaves out the division by the standard
    deviation (Liu et al. 2025), by which groups of nearly equal rewards count as much as others."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    scaled: bool = True
    skip_flat: bool = True  # groups in which all earned the same
    normalisation: Normalisation = "answers"
    overlong: Overlong | None = None
    correction: Correction = NO_CORRECTION
    kl: KlPenalty = field(default_factory=KlPenalty)

    loss: ClassVar[LossName] = "ppo"

    @classmethod
    def dapo(cls, most_tokens: int, buffer: int | None = None) -> Grpo:
        """DAPO: clip 0.2/0.28, the mean over tokens, and a soft penalty on the last fifth of the tokens allowed."""
        overlong = Overlong(most_tokens, buffer or max(1, most_tokens // 5))
        return cls(clip_high=0.28, normalisation="tokens", overlong=overlong)

    @property
    def config(self) -> Mapping[str, float]:
        """The bounds as the protocol takes them: on the ratio itself."""
        return {"clip_low_threshold": 1.0 - self.clip_low, "clip_high_threshold": 1.0 + self.clip_high}

    @property
    def needs(self) -> frozenset[Need]:
        """The trainer's own log-probabilities for a correction, the reference's for a penalty."""
        return needs_of(self.correction, self.kl)

    def datums(self, groups: Sequence[ScoredGroup]) -> list[tinker.Datum]:
        """One datum for each answer that is better or worse than its group."""
        # The filter looks at what graders gave: answers of equal reward and unequal length have something to teach
        # about length alone, which is not what the tokens of such a group would be spent on.
        # Where there is a penalty, they have its pull to learn.
        kept = informative(groups) if self.skip_flat and not self.kl.strength else groups
        rows = [row for group in kept for row in self.weighed(group)]
        return shaped(rows, self.correction, self.kl, self.normalisation)

    def weighed(self, group: ScoredGroup) -> list[Weighted]:
        """The group with its advantages, as they are before a correction."""
        return compared(group, scaled=self.scaled, extra=self._overlong)

    def _overlong(self, scored: Scored) -> float:
        return self.overlong.penalty(scored.trace.rollout.n_sampled) if self.overlong else 0.0

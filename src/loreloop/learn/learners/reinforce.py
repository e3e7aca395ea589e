"""REINFORCE: the policy gradient with the group's mean as its baseline, weighted for the weights that sampled.

    Σ_t min(π_θ/μ, C) · A_i · log π_θ(y_t)        A_i = R_i − mean of the group, C = 2        (μ is the sampler)

Sources: Williams 1992; the truncated weight, Espeholt et al. 2018 (arXiv 1802.01561), and for samplers that compute
differently than trainers, Yao et al. 2025. IcePop and the geometric mask stand in `learn/corrections.py`.

With truncation the weight is taken against the sampler inside of the pass, by the protocol's `cispo` with the bounds 0
and C, which is this formula; the other rules ask the trainer for its log-probabilities first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import tinker

from loreloop.learn.corrections import NO_CORRECTION, TRUNCATE_AT, Correction
from loreloop.learn.learners.kl import KlPenalty
from loreloop.learn.learners.policy import LossName, Need, Normalisation, ScoredGroup, compared, informative
from loreloop.learn.learners.shaping import needs_of, shaped


@dataclass(frozen=True)
class Reinforce:
    """`correction` truncates at 2 by default. `scaled` True divides by the group's standard deviation, as GRPO does."""

    correction: Correction = field(default_factory=lambda: Correction("truncate"))
    scaled: bool = False
    skip_flat: bool = True
    normalisation: Normalisation = "tokens"
    kl: KlPenalty = field(default_factory=KlPenalty)

    @property
    def loss(self) -> LossName:
        """`cispo` truncates; with the other rules the ratio to the trainer's own weights begins at 1."""
        # A truncated weight without gradient is what this loss computes, and inside the pass it costs no question
        # beforehand.
        return "cispo" if self._truncates else "importance_sampling"

    @property
    def config(self) -> Mapping[str, float]:
        """The bounds of the weight."""
        if not self._truncates:
            return {}
        # Only from above: a weight bounded from below would make tokens count that these weights would never have
        # drawn.
        most = TRUNCATE_AT if self.correction.high is None else self.correction.high
        return {"clip_low_threshold": 0.0, "clip_high_threshold": most}

    @property
    def needs(self) -> frozenset[Need]:
        """The trainer's own log-probabilities for the rules that look at them, the reference's for a penalty."""
        return needs_of(self._beforehand, self.kl)

    def datums(self, groups: Sequence[ScoredGroup]) -> list[tinker.Datum]:
        """One datum for each answer that is better or worse than its group."""
        kept = informative(groups) if self.skip_flat and not self.kl.strength else groups
        rows = [row for group in kept for row in compared(group, scaled=self.scaled)]
        return shaped(rows, self._beforehand, self.kl, self.normalisation)

    @property
    def _truncates(self) -> bool:
        return self.correction.rule == "truncate"

    @property
    def _beforehand(self) -> Correction:
        """The correction that is in the advantages; what the loss does itself must not be done twice."""
        return NO_CORRECTION if self._truncates else self.correction

"""PPO-clip with a learned value of every token, so that an answer's good and bad parts are told apart.

    A_t = Σ_k (γλ)^k δ_{t+k},  δ_t = r_t + γ V_{t+1} − V_t                        (advantages, then whitened)
    Σ_t min(r_t A_t, clip(r_t, 1 − ε, 1 + ε) A_t)                                 with r_t = π_θ/π_old

Sources: Schulman et al. 2017 (arXiv 1707.06347) and 2015 (1506.02438). V is read from a second adapter
(`value_adapter.py`), which learns Σ_k γ^k r_{t+k}: a λ of 1 for its targets, since a critic that begins with nothing
should not learn from its own guesses (Yue et al. 2025, VAPO, 2504.05118).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import tinker
from numpy.typing import NDArray

from loreloop.learn.advantages import estimated, returns, whitened
from loreloop.learn.corrections import NO_CORRECTION, Correction
from loreloop.learn.learners.kl import KlPenalty
from loreloop.learn.learners.policy import LossName, Need, Normalisation, Scored, ScoredGroup, Weighted
from loreloop.learn.learners.shaping import needs_of, shaped
from loreloop.learn.rollouts.traces import Trace

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ppo:
    """Defaults of the paper, but γ = 1: an answer's tokens are no later in time than one another."""

    clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    normalisation: Normalisation = "tokens"
    correction: Correction = NO_CORRECTION
    kl: KlPenalty = field(default_factory=KlPenalty)

    loss: ClassVar[LossName] = "ppo"

    @property
    def config(self) -> Mapping[str, float]:
        """The bounds as the protocol takes them: on the ratio itself."""
        return {"clip_low_threshold": 1.0 - self.clip, "clip_high_threshold": 1.0 + self.clip}

    @property
    def needs(self) -> frozenset[Need]:
        """The value of every token, and what a correction or a penalty needs."""
        return needs_of(self.correction, self.kl) | {"values"}

    def datums(self, groups: Sequence[ScoredGroup]) -> list[tinker.Datum]:
        """One datum for each answer; groups mean nothing here, as each token is compared with its own value."""
        scored = [one for group in groups for one in group]
        # Over the batch, as rewards may be of any size and the clip and the learning rate are not.
        estimates = whitened([self.estimates(one) for one in scored])
        rows = [
            Weighted(one, _at_learned(one.trace, estimate)) for one, estimate in zip(scored, estimates, strict=True)
        ]
        return shaped(rows, self.correction, self.kl, self.normalisation)

    def estimates(self, scored: Scored) -> Array:
        """Advantages of the learned tokens in their order, over all turns of the episode."""
        learned = scored.trace.learned
        # Only the model's own tokens are steps in time; what it was shown between them is a part of the world.
        values = scored.known("values")[learned]
        return estimated(_earned(scored.trace), values, gamma=self.gamma, lam=self.lam)

    def value_targets(self, trace: Trace) -> Array:
        """What the value adapter is to learn of a trace, shape (N,); 0 where nothing is learned."""
        return _at_learned(trace, returns(_earned(trace), gamma=self.gamma))


def _earned(trace: Trace) -> Array:
    """Rewards of the learned tokens. What was earned where nothing is learned belongs to the learned token before it,
    or to the first one."""
    places = np.flatnonzero(trace.learned)
    earned = np.zeros(len(places))
    for place in np.flatnonzero(trace.earned):
        # The token before caused what was earned; a reward before any token can only be laid on the first one.
        owner = max(0, int(np.searchsorted(places, place, side="right")) - 1)
        earned[owner] += trace.earned[place]
    return earned


def _at_learned(trace: Trace, values: Array) -> Array:
    row = np.zeros(len(trace.targets))
    row[trace.learned] = values
    return row

"""PPO-clip with a learned value of every token, so that an answer's good and bad parts are told apart.

    A_t = Σ_k (γλ)^k δ_{t+k},  δ_t = r_t + γ V_{t+1} − V_t                        (advantages, then whitened)
    Σ_t min(r_t A_t, clip(r_t, 1 − ε, 1 + ε) A_t)                                 with r_t = π_θ/π_old

Sources: Schulman et al. 2017 (arXiv 1707.06347) and 2015 (1506.02438). V is read from a second adapter
(`value_adapter.py`), which learns Σ_k γ^k r_{t+k}: a λ of 1 for its targets, since a critic that begins with nothing
should not learn from its own guesses (Yue et al. 2025, VAPO, 2504.05118).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import ClassVar, TypeVar

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
R = TypeVar("R")


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
        episodes = _episodes([one for group in groups for one in group], lambda one: one.trace)
        # An episode of which nothing is learned has no advantages to be whitened with the others'.
        episodes = [episode for episode in episodes if any(one.trace.n_learned for one in episode)]
        scored = [one for episode in episodes for one in episode]
        # Over the batch, as rewards may be of any size and the clip and the learning rate are not.
        estimates = whitened([row for episode in episodes for row in self._rows(episode)])
        rows = [
            Weighted(one, _at_learned(one.trace, estimate)) for one, estimate in zip(scored, estimates, strict=True)
        ]
        return shaped(rows, self.correction, self.kl, self.normalisation)

    def estimates(self, episode: Sequence[Scored]) -> Array:
        """Advantages of an episode's learned tokens in their order, over all of its turns and rows."""
        # Only the model's own tokens are steps in time; what it was shown between them is a part of the world.
        values = np.concatenate([one.known("values")[one.trace.learned] for one in episode])
        return estimated(_earned([one.trace for one in episode]), values, gamma=self.gamma, lam=self.lam)

    def value_targets(self, traces: Sequence[Trace]) -> list[Array]:
        """What the value adapter is to learn of each trace, shape (N,); 0 where nothing is learned. The rows of one
        episode follow one another."""
        return [
            _at_learned(trace, values)
            for episode in _episodes(traces, lambda trace: trace)
            for trace, values in zip(
                episode, _by_rows(episode, returns(_earned(episode), gamma=self.gamma)), strict=True
            )
        ]

    def _rows(self, episode: Sequence[Scored]) -> list[Array]:
        return _by_rows([one.trace for one in episode], self.estimates(episode))


def _episodes(rows: Sequence[R], trace_of: Callable[[R], Trace]) -> list[list[R]]:
    """Rows that follow one another, by the rollouts that they are of."""
    return [list(rows_of) for _, rows_of in groupby(rows, lambda row: id(trace_of(row).rollout))]


def _by_rows(traces: Sequence[Trace], values: Array) -> list[Array]:
    """What was computed over a whole episode, for each of its rows."""
    return np.split(values, np.cumsum([trace.n_learned for trace in traces])[:-1])


def _earned(traces: Sequence[Trace]) -> Array:
    """Rewards of an episode's learned tokens, over all of its rows: what the last one earned is what the others led
    to. What was earned where nothing is learned belongs to the learned token before it, or to the first one."""
    places = np.flatnonzero(np.concatenate([trace.learned for trace in traces]))
    given = np.concatenate([trace.earned for trace in traces])
    earned = np.zeros(len(places))
    for place in np.flatnonzero(given) if len(places) else ():
        # The token before caused what was earned; a reward before any token can only be laid on the first one.
        owner = max(0, int(np.searchsorted(places, place, side="right")) - 1)
        earned[owner] += given[place]
    return earned


def _at_learned(trace: Trace, values: Array) -> Array:
    row = np.zeros(len(trace.targets))
    row[trace.learned] = values
    return row

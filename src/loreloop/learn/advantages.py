"""How much better an answer, or a token of it, was than expected. Pure functions over numpy.

Sources: groups, Shao et al. 2024 (arXiv 2402.03300); without the division, Liu et al. 2025 (2503.20783); the overlong
penalty, Yu et al. 2025 (DAPO, 2503.14476); the estimate over time, Schulman et al. 2015 (1506.02438).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SAME = 1e-8  # rewards that differ by less are equal


def centred(rewards: Sequence[float], *, scaled: bool = True) -> Array:
    """(R − mean)/std over a group, where std is that of the population; 0 for all where every reward is the same."""
    values = np.asarray(rewards, np.float64)
    difference = values - values.mean()
    if is_flat(rewards):
        return np.zeros_like(values)
    return difference / values.std() if scaled else difference


def is_flat(rewards: Sequence[float]) -> bool:
    """Whether all answers of a group earned the same, so that none was better than another."""
    return len(rewards) == 0 or max(rewards) - min(rewards) < SAME


@dataclass(frozen=True)
class Overlong:
    """DAPO's soft penalty: nothing up to `most − buffer` tokens, then linearly down to −`cost` at `most` and beyond."""

    most: int
    buffer: int
    cost: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.most:
            raise ValueError(f"the buffer of an overlong penalty is between 1 and {self.most} tokens")

    def penalty(self, n_tokens: int) -> float:
        """What is added to the reward of an answer of so many tokens; never above 0."""
        over = n_tokens - (self.most - self.buffer)
        return -self.cost * min(1.0, max(0.0, over / self.buffer))


def estimated(earned: Array, values: Array, *, gamma: float = 1.0, lam: float = 0.95) -> Array:
    """Generalised advantage estimates of the tokens of one episode, in their order.

    A_t = Σ_k (γλ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} − V_t. `values[t]` is V before token t; behind the last it is 0.
    """
    following = np.append(values[1:], 0.0)
    surprise = earned + gamma * following - values
    advantages = np.zeros_like(surprise)
    ahead = 0.0
    # Backwards, since each estimate is the next one's, discounted, and its own surprise.
    for t in range(len(surprise) - 1, -1, -1):
        ahead = surprise[t] + gamma * lam * ahead
        advantages[t] = ahead
    return advantages


def returns(earned: Array, *, gamma: float = 1.0) -> Array:
    """Σ_k γ^k r_{t+k}: what was earned from each token on."""
    totals = np.zeros_like(earned)
    ahead = 0.0
    for t in range(len(earned) - 1, -1, -1):
        ahead = float(earned[t]) + gamma * ahead
        totals[t] = ahead
    return totals


def whitened(rows: Sequence[Array]) -> list[Array]:
    """All advantages of a batch with mean 0 and standard deviation 1, taken together."""
    if not rows:
        return []
    together = np.concatenate(list(rows))
    spread = together.std()
    # A batch without any spread teaches nothing; dividing by its rounding would make something of it.
    scale = 1.0 / spread if spread > SAME else 0.0
    return [(row - together.mean()) * scale for row in rows]

"""Weights for tokens that other weights drew than those that learn: the sampler is older, or computes differently.

With μ the sampler and π_old the trainer before its step, a token's gradient should count π_old/μ times. As this ratio
can be huge, each rule here bounds it in its own way. Pure functions over numpy of shape (N,).

Sources: truncated importance sampling, Espeholt et al. 2018 (arXiv 1802.01561) and verl's documentation; IcePop, Ling
team 2025 (Ring-1T, arXiv 2510.18855); the geometric mask, as SkyRL documents it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rule = Literal["none", "truncate", "icepop", "geometric"]

MOST_LOG_RATIO = 20.0  # e^20 is half a billion; beyond lies nothing but overflow
TRUNCATE_AT = 2.0
ICEPOP_BAND = (0.5, 2.0)
GEOMETRIC_BAND = (0.99, 1.01)


def log_ratios(trainer: NDArray[np.floating], sampler: NDArray[np.floating]) -> Array:
    """log(π_old/μ) of each token, within ±20."""
    difference = np.asarray(trainer, np.float64) - np.asarray(sampler, np.float64)
    return np.clip(difference, -MOST_LOG_RATIO, MOST_LOG_RATIO)


def truncated(log_ratio: Array, most: float = TRUNCATE_AT) -> Array:
    """min(π_old/μ, C): unlikely tokens count less often than they should, and none counts more than C times."""
    return np.minimum(np.exp(log_ratio), most)


def icepop(log_ratio: Array, low: float = ICEPOP_BAND[0], high: float = ICEPOP_BAND[1]) -> Array:
    """π_old/μ inside the band, 0 outside: a token on which the two disagree teaches nothing."""
    ratio = np.exp(log_ratio)
    return np.where((ratio >= low) & (ratio <= high), ratio, 0.0)


def geometric_mask(
    log_ratio: Array, learned: NDArray[np.bool_], low: float = GEOMETRIC_BAND[0], high: float = GEOMETRIC_BAND[1]
) -> Array:
    """1 for all tokens of a sequence, or 0 for all where the geometric mean of its ratios lies outside the band."""
    if not learned.any():
        return np.zeros_like(log_ratio)
    mean = float(np.exp(log_ratio[learned].mean()))
    return np.full_like(log_ratio, float(low <= mean <= high))


@dataclass(frozen=True)
class Correction:
    """One rule with its bounds; None takes the rule's own. `low` is not used by `truncate`."""

    rule: Rule = "none"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        low, high = self._bounds()
        if not 0 <= low < high:
            raise ValueError(f"the bounds of a correction are two numbers with 0 <= low < high, not {low} and {high}")

    def weights(
        self, trainer: NDArray[np.floating], sampler: NDArray[np.floating], learned: NDArray[np.bool_]
    ) -> Array:
        """What each token's advantage is multiplied by, shape (N,)."""
        log_ratio, (low, high) = log_ratios(trainer, sampler), self._bounds()
        if self.rule == "truncate":
            return truncated(log_ratio, high)
        if self.rule == "icepop":
            return icepop(log_ratio, low, high)
        if self.rule == "geometric":
            return geometric_mask(log_ratio, learned, low, high)
        return np.ones_like(log_ratio)

    def _bounds(self) -> tuple[float, float]:
        own: dict[Rule, tuple[float, float]] = {
            "truncate": (0.0, TRUNCATE_AT),
            "icepop": ICEPOP_BAND,
            "geometric": GEOMETRIC_BAND,
        }
        low, high = own.get(self.rule, (0.0, 1.0))
        return (low if self.low is None else self.low), (high if self.high is None else self.high)


NO_CORRECTION = Correction()

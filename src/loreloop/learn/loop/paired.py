"""The offline gate's comparison: two arms over the same prompts, by wins and losses, with a test that may be looked at
after every prompt. Pure functions; exact.

Confidence sequences by betting: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (arXiv
2010.09686): the capital of a gambler who bets λ on x against m, K_t(m) = Π (1 + λ_i · (x_i − m)), is a martingale where
m is the mean, and by Ville's inequality reaches 1/α with a chance of α at most, whenever one looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

HALF = 0.5  # the share of wins where neither is better
BOUND = 0.5  # of a bet, as a share of the most that cannot ruin the gambler; the paper's c
GRID = np.linspace(0.0, 1.0, 401)


@dataclass(frozen=True)
class Interval:
    """Where a mean lies, with both ends, after `n` values."""

    low: float
    high: float
    n: int


def bets(values: Floats, alpha: float) -> Floats:
    """λ_t of the paper's predictable plug-in (equations 24 to 26), each made of the values before it, shape (N,)."""
    n = len(values)
    steps = np.arange(1, n + 1)
    means = (HALF + np.cumsum(values)) / (steps + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2)) / (steps + 1)
    # The bet on a value must not know it, so the variance is that of the values before.
    before = np.concatenate([[0.25], variances[:-1]])
    return np.sqrt(2 * math.log(2 / alpha) / (before * steps * np.log1p(steps)))


def confidence_sequence(values: Floats, alpha: float) -> Interval:
    """The mean's interval after these values, one of a sequence that holds the mean at all times at once with a chance
    of 1 − α: all m on a grid against which neither gambler, on more or on less, has ever reached 2/α. (The paper's
    hedged capital, theorem 3; intervals of earlier times are intersected.)"""
    if not len(values):
        return Interval(0.0, 1.0, 0)
    plain = bets(values, alpha)[:, None]
    gaps = values[:, None] - GRID[None, :]
    # A bet may lose no more than its share at either end: 1 + λ(x − m) stays above 1 − c.
    up = np.minimum(plain, BOUND / np.maximum(GRID, 1e-9))
    down = np.minimum(plain, BOUND / np.maximum(1 - GRID, 1e-9))
    rich = np.log1p(up * gaps).cumsum(axis=0).max(axis=0)
    poor = np.log1p(-down * gaps).cumsum(axis=0).max(axis=0)
    left = GRID[np.maximum(rich, poor) < math.log(2 / alpha)]
    # The set is an interval but for the grid's width, which is added on both sides.
    width = float(GRID[1])
    low, high = (float(left[0]), float(left[-1])) if len(left) else (float(values.mean()),) * 2
    return Interval(max(0.0, low - width), min(1.0, high + width), len(values))


@dataclass(frozen=True)
class Compared:
    """A candidate and a champion over the same prompts: the share that the candidate wins of those that either wins,
    and whether that share was shown to be below the one that is asked for, before or when all were asked."""

    win_rate: float
    n_wins: int
    n_losses: int
    n_ties: int
    worse: bool


def compare(candidate: Sequence[float], champion: Sequence[float], alpha: float, least: float = HALF) -> Compared:
    """The offline gate's test, paired by prompt. A candidate that would win `least` of the prompts, if there were many
    more of them, is called `worse` with a chance of α at most, however many were looked at when it is asked; what these
    few have happened to say is not held against it. Without any win or loss, the win rate is 1/2."""
    pairs = list(zip(candidate, champion, strict=True))
    signs = [one > other for one, other in pairs if one != other]
    wins = np.array([float(sign) for sign in signs])
    found = confidence_sequence(wins, 2 * alpha)
    return Compared(
        win_rate=float(wins.mean()) if len(wins) else HALF,
        n_wins=sum(signs),
        n_losses=len(signs) - sum(signs),
        n_ties=len(pairs) - len(signs),
        worse=bool(len(wins)) and found.high < least,
    )

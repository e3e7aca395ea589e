"""Statistics that may be looked at after every observation, over values in 0 … 1. Pure functions; exact but where said.

Two arms are compared by pairs: the k-th value of one beside the k-th of the other, as x = (1 + candidate − champion)/2,
whose mean is 1/2 where neither is better. Confidence sequences and tests by betting: Waudby-Smith & Ramdas, "Estimating
means of bounded random variables by betting" (arXiv 2010.09686): the capital of a gambler who bets λ on x against m,
K_t(m) = Π (1 + λ_i · (x_i − m)), is a martingale where m is the mean, and by Ville's inequality reaches 1/α with a
chance of α at most, whenever one looks. The last look of a bounded trial is an ordinary one-sided z-test (asymptotic).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

HALF = 0.5  # the mean of a pair of arms that are equally good
BOUND = 0.5  # of a bet, as a share of the most that cannot ruin the gambler; the paper's c
GRID = np.linspace(0.0, 1.0, 401)
# A trial that is bounded spends most of its chance of error at the end, where it knows most, and little on the way, so
# that only a plain difference ends it early (as Haybittle and Peto have it for clinical trials).
EARLY_SHARE = 0.25
# Bets are shares of the one that suits the difference which is worth finding; larger differences want larger bets.
BETS = ((1.0, 0.6), (2.5, 0.25), (6.0, 0.15))


@dataclass(frozen=True)
class Interval:
    """Where a mean lies, with both ends, after `n` values."""

    low: float
    high: float
    n: int


def paired(candidate: Sequence[float], champion: Sequence[float]) -> Floats:
    """Both arms' values in their order as pairs in 0 … 1, shape (N,); what has no partner yet is left out."""
    n = min(len(candidate), len(champion))
    return (1.0 + np.asarray(candidate[:n], np.float64) - np.asarray(champion[:n], np.float64)) / 2.0


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


def difference(values: Floats, alpha: float) -> Interval:
    """The confidence sequence of candidate − champion, in −1 … 1, out of pairs."""
    found = confidence_sequence(values, alpha)
    return Interval(2 * found.low - 1, 2 * found.high - 1, found.n)


def evidence(values: Floats, against: float, worth: float) -> float:
    """The largest capital so far of a gambler who bets that the mean is above `against`; where it is not, this reaches
    1/α with a chance of α at most. `worth` is the difference of the arms that the bets suit: a mixture of fixed bets,
    of which the best has the growth of a likelihood ratio (section 4 of the paper)."""
    total = np.zeros(len(values))
    for factor, weight in BETS:
        # For a difference d of x from m the best bet is about d over the variance; 1 + λ(x − m) must stay above 0.
        bet = min(MOST_BET / against, factor * (worth / 2) / PRIOR_VARIANCE)
        total += weight * np.exp(np.log1p(bet * (values - against)).cumsum())
    return float(total.max(initial=1.0))


MOST_BET = 0.9  # of the bet that could lose everything
PRIOR_VARIANCE = 0.1  # of a pair, as thumbs of which 70 to 75 % are up have it; a wrong guess costs power alone


def final_look(values: Floats) -> float:
    """The chance of so large a mean, or a larger one, if the arms were equally good: one-sided, by the normal
    distribution (asymptotic: for the end of a trial, not for its beginning)."""
    n = len(values)
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    if not spread:
        return 1.0 if not n or values.mean() <= HALF else 0.5**n
    return 1.0 - NormalDist().cdf((float(values.mean()) - HALF) / (spread / math.sqrt(n)))


@dataclass(frozen=True)
class Trial:
    """What a canary is decided by. `harm` is the loss that is borne, `gain` the difference worth finding; counts are
    of episodes: `least` of either arm, `most` of both arms together."""

    gain: float = 0.05
    harm: float = 0.02
    false_promotion: float = 0.02
    false_alarm: float = 0.02
    least: int = 20
    most: int = 3000
    needs_gain: bool = True


@dataclass(frozen=True)
class Outcome:
    """What the evidence says: `better` and `no_harm` promote, `harmful` and `no_better` roll back, `open` waits."""

    kind: str
    gain: float = 1.0  # the evidence of a gain (or of no harm, where that is enough), as capital
    loss: float = 1.0  # the evidence of harm
    p_value: float | None = None  # of the last look, where it was taken

    @property
    def is_open(self) -> bool:
        """Whether nothing is decided yet."""
        return self.kind == "open"


def judge(candidate: Sequence[float], champion: Sequence[float], trial: Trial) -> Outcome:
    """What both arms' episodes, each in 0 … 1 in the order in which they were judged, say so far. A wrong promotion
    has a chance of `false_promotion` at most, whenever this is asked, and a wrong alarm one of `false_alarm`."""
    values = paired(candidate, champion)
    found = _during(values, trial)
    if not found.is_open or len(candidate) + len(champion) < trial.most:
        return found
    if not trial.needs_gain:
        return Outcome("no_harm", found.gain, found.loss)
    p = final_look(values)
    late = trial.false_promotion * (1 - EARLY_SHARE)
    return Outcome("better" if p <= late else "no_better", found.gain, found.loss, p)


def _during(values: Floats, trial: Trial) -> Outcome:
    worth = trial.gain
    gain = evidence(values, HALF if trial.needs_gain else HALF - trial.harm / 2, worth)
    loss = evidence(1.0 - values, HALF + trial.harm / 2, worth)
    # Harm ends a trial from its first episodes on; all else waits until there are some.
    if loss >= 1 / trial.false_alarm:
        return Outcome("harmful", gain, loss)
    share = EARLY_SHARE if trial.needs_gain else 1.0
    if len(values) >= trial.least and gain >= 1 / (trial.false_promotion * share):
        return Outcome("better" if trial.needs_gain else "no_harm", gain, loss)
    return Outcome("open", gain, loss)


@dataclass(frozen=True)
class Compared:
    """A candidate and a champion over the same prompts: the share that the candidate wins of those that either wins,
    and whether it was shown to be worse before all were asked."""

    win_rate: float
    n_wins: int
    n_losses: int
    n_ties: int
    worse: bool


def compare(candidate: Sequence[float], champion: Sequence[float], alpha: float) -> Compared:
    """The offline gate's test, paired by prompt. A candidate that is no worse is called `worse` with a chance of α at
    most, however many prompts were looked at when it is asked. Without any win or loss, the win rate is 1/2."""
    pairs = list(zip(candidate, champion, strict=True))
    signs = [one > other for one, other in pairs if one != other]
    wins = np.array([float(sign) for sign in signs])
    found = confidence_sequence(wins, 2 * alpha)
    return Compared(
        win_rate=float(wins.mean()) if len(wins) else HALF,
        n_wins=sum(signs),
        n_losses=len(signs) - sum(signs),
        n_ties=len(pairs) - len(signs),
        worse=bool(len(wins)) and found.high < HALF,
    )

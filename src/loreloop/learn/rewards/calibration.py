"""A judge's scale, fitted to what turned out to be true: from its score to the chance that an answer is right.

Two fits. Logistic (Platt, 1999): p = 1 / (1 + exp(-(slope · score + offset))), of greatest likelihood. Isotonic: the
rising step function of least squares, by pooling adjacent violators (Ayer et al., 1955), with straight lines between
the steps' middles. Knows no judge.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

Form = Literal["logistic", "isotonic"]
Scale = Callable[[float], float]
MOST_STEPS, ENOUGH = 50, 1e-9  # Newton's steps, and when the slope of the likelihood counts as 0
FARTHEST = 30.0  # of an exponent; e^30 is as good as never
RIDGE = 1e-6  # keeps the fit in place where all scores are alike


@dataclass(frozen=True)
class Seen:
    """A judge's score of one answer, and whether the answer was right, from 0 to 1."""

    score: float
    outcome: float


@dataclass(frozen=True)
class Logistic:
    """p = 1 / (1 + exp(-(slope · score + offset)))."""

    slope: float
    offset: float

    def __call__(self, score: float) -> float:
        """The chance that an answer with this score is right."""
        return _sigmoid(self.slope * score + self.offset)


@dataclass(frozen=True)
class Isotonic:
    """Steps by their middle score and their height; between two, a straight line; beyond the ends, flat."""

    scores: tuple[float, ...]
    heights: tuple[float, ...]

    def __call__(self, score: float) -> float:
        """The chance that an answer with this score is right."""
        at = bisect.bisect_left(self.scores, score)
        if at == 0 or at == len(self.scores):
            return self.heights[min(at, len(self.scores) - 1)]
        share = (score - self.scores[at - 1]) / (self.scores[at] - self.scores[at - 1])
        return self.heights[at - 1] + share * (self.heights[at] - self.heights[at - 1])


def fitted_logistic(seen: Sequence[Seen]) -> Logistic:
    """Newton's method on the log-likelihood. As Platt has it, outcomes are drawn inwards to (n₊ + 1)/(n₊ + 2) and
    1/(n₋ + 2), so that a few answers that separate perfectly give no endless slope; the slope is never below 0, since a
    judge whose scores run backwards says nothing."""
    right = sum(one.outcome for one in seen)
    high, low = (right + 1) / (right + 2), 1 / (len(seen) - right + 2)
    pairs = [(one.score, low + one.outcome * (high - low)) for one in seen]
    middle = sum(score for score, _ in pairs) / len(pairs)
    spread = math.sqrt(sum((score - middle) ** 2 for score, _ in pairs) / len(pairs)) or 1.0
    mean = sum(target for _, target in pairs) / len(pairs)
    # In scores of mean 0 and spread 1 the two unknowns hardly pull at each other.
    slope, offset = 0.0, math.log(mean / (1 - mean))
    standard = [((score - middle) / spread, target) for score, target in pairs]
    for _ in range(MOST_STEPS):
        down, by_slope, by_offset = _newton(standard, slope, offset)
        # A full step may overshoot where the curve is flat, so it is halved until the likelihood does not fall.
        size, before = 1.0, _likelihood(standard, slope, offset)
        while size > ENOUGH and _likelihood(standard, slope + size * by_slope, offset + size * by_offset) < before:
            size /= 2
        slope, offset = slope + size * by_slope, offset + size * by_offset
        if down < ENOUGH:
            break
    # Backwards scores are then all given the same chance, that of the mean, which is what they tell.
    if slope <= 0:
        return Logistic(0.0, math.log(mean / (1 - mean)))
    return Logistic(slope / spread, offset - slope * middle / spread)


def _newton(pairs: Sequence[tuple[float, float]], slope: float, offset: float) -> tuple[float, float, float]:
    """The size of the gradient, and the step."""
    g_slope, g_offset, h_ss, h_so, h_oo = -RIDGE * slope, 0.0, RIDGE, 0.0, RIDGE
    for score, target in pairs:
        chance = _sigmoid(slope * score + offset)
        error, curve = target - chance, chance * (1 - chance)
        g_slope, g_offset = g_slope + error * score, g_offset + error
        h_ss, h_so, h_oo = h_ss + curve * score * score, h_so + curve * score, h_oo + curve
    determinant = h_ss * h_oo - h_so * h_so
    # Two unknowns: the inverse of the curvature is written out, and no library is needed.
    step = (g_slope * h_oo - g_offset * h_so) / determinant, (g_offset * h_ss - g_slope * h_so) / determinant
    return abs(g_slope) + abs(g_offset), *step


def _likelihood(pairs: Sequence[tuple[float, float]], slope: float, offset: float) -> float:
    total = -RIDGE * slope * slope / 2
    for score, target in pairs:
        exponent = max(-FARTHEST, min(FARTHEST, slope * score + offset))
        total += target * exponent - math.log1p(math.exp(exponent))
    return total


def _sigmoid(exponent: float) -> float:
    return 1 / (1 + math.exp(-max(-FARTHEST, min(FARTHEST, exponent))))


@dataclass
class _Step:
    total: float
    count: int
    low: float
    high: float

    @property
    def height(self) -> float:
        return self.total / self.count


def fitted_isotonic(seen: Sequence[Seen]) -> Isotonic:
    """The rising step function that is nearest to the outcomes in the sum of squares."""
    steps: list[_Step] = []
    for score, group in groupby(sorted(seen, key=lambda one: one.score), key=lambda one: one.score):
        outcomes = [one.outcome for one in group]
        steps.append(_Step(sum(outcomes), len(outcomes), score, score))
        while len(steps) > 1 and steps[-2].height >= steps[-1].height:
            last = steps.pop()
            steps[-1] = _Step(steps[-1].total + last.total, steps[-1].count + last.count, steps[-1].low, last.high)
    return Isotonic(tuple((step.low + step.high) / 2 for step in steps), tuple(step.height for step in steps))


def fitted(form: Form, seen: Sequence[Seen]) -> Scale:
    """The scale of that form. ValueError where there is nothing to fit it to."""
    if not seen:
        raise ValueError("a scale needs at least one score with its outcome")
    return fitted_logistic(seen) if form == "logistic" else fitted_isotonic(seen)


def brier(scale: Scale, seen: Sequence[Seen]) -> float:
    """The mean squared distance of chances from outcomes (Brier, 1950): 0 is perfect, 0.25 is a coin."""
    return sum((scale(one.score) - one.outcome) ** 2 for one in seen) / len(seen)

"""How much more content persons are with one arm than with the other: a difference with its variance, by persons.

Episodes of one person are alike, so persons are what is counted: a person's mean, with a weight that grows with their
episodes and never above five of them. Where the canary's share was changed, the time before and the time behind are
strata of their own: within each, both arms have met the same days, and only such differences are added up. Pure
functions; the variance is that of Liang and Zeger (1986), by person over all strata, held up where persons are few.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# How alike episodes of one person are taken to be (the correlation within a person). A wrong guess costs power alone.
ALIKE = 0.2
# So many persons of each arm are imagined beside those that are there, with the largest spread that there can be: three
# persons of one mind do not show that all persons are of that mind.
IMAGINED, LARGEST_VARIANCE = 4.0, 0.25


@dataclass(frozen=True)
class Episode:
    """One judged episode: whose it is, its arm, how content its person was (0 … 1), and the stage of the canary (any
    number that changes with the canary's share) in which it was answered."""

    person: str
    is_candidate: bool
    value: float
    stage: int = 0


@dataclass(frozen=True)
class Estimate:
    """Candidate − champion, in −1 … 1, with its variance, and the degrees of freedom of that. A variance of infinity
    says that there is nothing to compare yet. Persons are counted in either arm; who was in both counts twice."""

    difference: float = 0.0
    variance: float = math.inf
    freedom: float = 1.0
    candidate_persons: int = 0
    champion_persons: int = 0

    def z(self, against: float) -> float:
        """How many standard errors the difference lies above a value; made normal where the variance is known from a
        few persons alone (Wallace 1959: what Student's t is as a normal number)."""
        if math.isinf(self.variance):
            return 0.0
        t = (self.difference - against) / math.sqrt(self.variance)
        size = math.sqrt(self.freedom * math.log1p(t * t / self.freedom)) * self._narrowed
        return math.copysign(size, t)

    def distance(self, z: float) -> float:
        """How far from the difference a value lies that has so many normal standard errors: the inverse of `z`."""
        exponent = (z / self._narrowed) ** 2 / self.freedom
        # Beyond any difference that there can be.
        if math.isinf(self.variance) or exponent > 100:
            return math.inf
        return math.sqrt(self.variance * self.freedom * math.expm1(exponent))

    @property
    def _narrowed(self) -> float:
        return (8 * self.freedom + 1) / (8 * self.freedom + 3)


@dataclass(frozen=True)
class _Cell:
    """One arm in one stage: persons with their weights and means."""

    persons: Sequence[str]
    weights: Floats
    means: Floats

    @property
    def weight(self) -> float:
        return float(self.weights.sum())

    @property
    def mean(self) -> float:
        return float(self.weights @ self.means) / self.weight

    @property
    def pulls(self) -> Floats:
        """By how much each person moves the mean from where it would be."""
        return self.weights * (self.means - self.mean) / self.weight

    @property
    def spread(self) -> float:
        """The variance of one person about the mean."""
        return float(self.weights**2 @ (self.means - self.mean) ** 2) / float(self.weights @ self.weights)

    def variance(self, spread: float) -> float:
        """Of the mean, with the imagined persons among the others; at least what persons of such a spread would have.
        A few who all say the same seem to be of one mind, and are not: the other arm's persons know better."""
        n = len(self.persons)
        of_one = max(self.spread, spread) * float(self.weights @ self.weights) / self.weight**2
        return (of_one + IMAGINED * LARGEST_VARIANCE / n**2) * n / (n + IMAGINED - 1)


def estimate(episodes: Iterable[Episode]) -> Estimate:
    """The difference of the arms. Each stage counts as much as both its arms together can tell, w₁·w₀/(w₁ + w₀) of the
    weights of their persons (Mantel and Haenszel), which does not depend on what was said."""
    cells = _cells(episodes)
    both = [
        (cells[stage, True], cells[stage, False])
        for stage in sorted({stage for stage, _ in cells})
        if (stage, True) in cells and (stage, False) in cells
    ]
    persons = [sum(len(cell.persons) for (_, arm), cell in cells.items() if arm == each) for each in (True, False)]
    if not both:
        return Estimate(candidate_persons=persons[0], champion_persons=persons[1])
    shares = np.array([one.weight * other.weight / (one.weight + other.weight) for one, other in both])
    shares /= shares.sum()
    difference = sum(share * (one.mean - other.mean) for share, (one, other) in zip(shares, both, strict=True))
    variance, freedom = _variance([float(share) for share in shares], both)
    return Estimate(
        difference=float(difference),
        variance=variance,
        freedom=freedom,
        candidate_persons=persons[0],
        champion_persons=persons[1],
    )


def _cells(episodes: Iterable[Episode]) -> dict[tuple[int, bool], _Cell]:
    found: dict[tuple[int, bool], dict[str, list[float]]] = defaultdict(dict)
    for one in episodes:
        counted = found[one.stage, one.is_candidate].setdefault(one.person, [0.0, 0.0])
        counted[0] += 1
        counted[1] += one.value
    cells = {}
    for place, persons in found.items():
        counts, sums = np.array([*persons.values()]).T
        cells[place] = _Cell([*persons], counts / (1 + (counts - 1) * ALIKE), sums / counts)
    return cells


def _variance(shares: Sequence[float], both: Sequence[tuple[_Cell, _Cell]]) -> tuple[float, float]:
    """The variance of the sum over stages, and its degrees of freedom (Satterthwaite 1946)."""
    arms = [
        (sign * share, cell)
        for share, pair in zip(shares, both, strict=True)
        for sign, cell in zip((1, -1), pair, strict=True)
    ]
    spreads = [_pooled(pair) for pair in both for _ in pair]
    alone = np.array([factor**2 * cell.variance(spread) for (factor, cell), spread in zip(arms, spreads, strict=True)])
    variance = float(alone.sum()) + _in_common(arms)
    # What persons of both arms have in common takes away from it; no more than half is believed.
    variance = max(variance, float(alone.sum()) / 2)
    freedoms = np.array([len(cell.persons) + IMAGINED - 1 for _, cell in arms])
    return variance, float(alone.sum() ** 2 / (alone**2 / freedoms).sum())


def _pooled(pair: tuple[_Cell, _Cell]) -> float:
    """The variance of one person about the mean of their arm, over both arms of a stage."""
    squares = [float(cell.weights @ cell.weights) for cell in pair]
    return sum(cell.spread * each for cell, each in zip(pair, squares, strict=True)) / sum(squares)


def _in_common(arms: Sequence[tuple[float, _Cell]]) -> float:
    """What is added to the variance since some persons were there in several stages, in one arm or in both: the pulls
    of one person are added up before they are squared."""
    times = Counter(chain.from_iterable(cell.persons for _, cell in arms))
    pulls: dict[str, list[float]] = defaultdict(list)
    for factor, cell in arms:
        for person, pull in zip(cell.persons, (factor * cell.pulls).tolist(), strict=True):
            if times[person] > 1:
                pulls[person].append(pull)
    return sum(sum(each) ** 2 - sum(pull * pull for pull in each) for each in pulls.values())

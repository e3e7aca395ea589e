"""The shares of `rates.py` fitted to what was measured, and how far what they then say lies from what was held back.

A fit is least squares of relative errors, so that a token of a millisecond counts as much as a step of a minute. Knows
neither files nor where the observations come from.

Legend: N observations, U unknown constants.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from loreloop.plan.rates import LIKELY, Rates
from loreloop.plan.times import Part

Floats = NDArray[np.float64]
OVERLAPS = tuple(step / 20 for step in range(20, -1, -1))
WORTH, TINY = 0.01, 1e-18  # what another overlap must bring: a share of the squared errors, and more than rounding
UNKNOWNS = ("products", "memory", "links", "layers", "messages")  # fields of a part, each with a constant of its own
MOST_ROUNDS = 20  # of telling which of products and memory is the longer one; a few are enough


@dataclass(frozen=True)
class Observation:
    """What was measured: what it takes at the published rates, and the seconds that it took. Those of one `kind`
    (training, reading, drawing) have constants of their own, since different programs run there."""

    name: str
    kind: str
    part: Part
    seconds: float


@dataclass(frozen=True)
class Fit:
    """The rates of each kind by one half of the observations, and the relative errors of each half, by name."""

    rates: Mapping[str, Rates]
    fitted: Mapping[str, float]
    held: Mapping[str, float]

    @property
    def median_fitted(self) -> float:
        """The median error of what was fitted."""
        return statistics.median(self.fitted.values())

    @property
    def median_held(self) -> float:
        """The median error of what was held back, by which the model is judged."""
        return statistics.median(self.held.values())


def halves(observations: Sequence[Observation]) -> list[list[Observation]]:
    """By turns in the order of names within each kind: the first, third and so on are to be fitted, the others are held
    back. Whoever measures can therefore not choose what the model is judged by."""
    kinds = sorted({one.kind for one in observations})
    ordered = [sorted((one for one in observations if one.kind == kind), key=lambda one: one.name) for kind in kinds]
    return [[one for of_kind in ordered for one in of_kind[start::2]] for start in (0, 1)]


def fit(observations: Sequence[Observation]) -> Fit:
    """One half fitted and the other one held against it."""
    mine, held = halves(observations)
    rates = rates_by_kind(mine)
    errors = [{one.name: error(one, rates[one.kind]) for one in half if one.kind in rates} for half in (mine, held)]
    return Fit(rates, errors[0], errors[1])


def rates_by_kind(observations: Sequence[Observation]) -> dict[str, Rates]:
    """Fitted rates of each kind."""
    kinds = sorted({one.kind for one in observations})
    return {kind: fitted([one for one in observations if one.kind == kind]) for kind in kinds}


def error(observation: Observation, rates: Rates) -> float:
    """How far what the rates say lies from what was measured, as a share of the latter."""
    return abs(observation.part.seconds(rates) / observation.seconds - 1)


def fitted(observations: Sequence[Observation], otherwise: Rates = LIKELY) -> Rates:
    """The rates under which the observations come out best. A constant that none of them says anything of, such as that
    of links where nobody spoke, is that of `otherwise`."""
    # From the roofline on, which has all overlap; less of it must be worth it, or noise alone would choose.
    best, *others = (_of_overlap(observations, overlap, otherwise) for overlap in OVERLAPS)
    for rates in others:
        if _misfit(observations, rates) < _misfit(observations, best) * (1 - WORTH) - TINY:
            best = rates
    return best


def _of_overlap(observations: Sequence[Observation], overlap: float, otherwise: Rates) -> Rates:
    """The best rates of one overlap. Once it is known which of products and memory takes longer in each observation,
    seconds are a sum of constants, each so many times; which it is follows from the constants, and so on by turns."""
    found = []
    for start in (0.0, 1.0):
        is_memory = np.full(len(observations), start)
        rates = otherwise
        for _ in range(MOST_ROUNDS):
            rates = _solved(observations, overlap, is_memory, otherwise)
            causes = [one.part.by_cause(rates) for one in observations]
            now = np.array([float(each["memory"] > each["products"]) for each in causes])
            if (now == is_memory).all():
                break
            is_memory = now
        found.append(rates)
    return min(found, key=lambda rates: _misfit(observations, rates))


def _solved(observations: Sequence[Observation], overlap: float, is_memory: Floats, otherwise: Rates) -> Rates:
    rows_NU = np.array([[getattr(one.part, name) for name in UNKNOWNS] for one in observations], dtype=np.float64)
    rows_NU[:, 0] *= np.where(is_memory > 0, 1 - overlap, 1.0)
    rows_NU[:, 1] *= np.where(is_memory > 0, 1.0, 1 - overlap)
    rows_NU /= np.array([[one.seconds] for one in observations])
    solution: list[float] = not_negative(rows_NU, np.ones(len(observations))).tolist()
    found = dict(zip(UNKNOWNS, solution, strict=True))
    known = {name for name, column in zip(UNKNOWNS, rows_NU.T, strict=True) if column.any()}

    def share(name: str, else_: float) -> float:
        # Nothing at all means that it takes no time, as at an endless rate.
        return (1 / found[name] if found[name] else math.inf) if name in known else else_

    return Rates(
        compute=share("products", otherwise.compute),
        memory=share("memory", otherwise.memory),
        links=share("links", otherwise.links),
        layer_seconds=found["layers"] if "layers" in known else otherwise.layer_seconds,
        message_seconds=found["messages"] if "messages" in known else otherwise.message_seconds,
        overlap=overlap,
    )


def not_negative(rows_NU: Floats, wanted_N: Floats) -> Floats:
    """The least squares solution without numbers below zero: the best one of those that leave some of them out. Of few
    unknowns this is quicker said than cleverly searched for."""
    n_unknowns = rows_NU.shape[1]
    best, least = np.zeros(n_unknowns), float(wanted_N @ wanted_N)
    some = [column for column in range(n_unknowns) if rows_NU[:, column].any()]
    for size in range(1, len(some) + 1):
        for chosen in combinations(some, size):
            solution = np.linalg.lstsq(rows_NU[:, chosen], wanted_N, rcond=None)[0]
            off = rows_NU[:, chosen] @ solution - wanted_N
            if (solution >= 0).all() and float(off @ off) < least:
                best, least = np.zeros(n_unknowns), float(off @ off)
                best[list(chosen)] = solution
    return best


def _misfit(observations: Sequence[Observation], rates: Rates) -> float:
    return sum(error(one, rates) ** 2 for one in observations)

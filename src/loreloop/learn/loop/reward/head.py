"""A linear function of an answer's numbers that learns from each event once, at a cost that does not grow.

It holds a Gaussian over its weights θ: mean and covariance, whole for the few numbers of the form and diagonal for the
hashed ones. One event with numbers x, outcome y and weight w moves the mean to where

    θ' = θ + w · (y − σ(θ'·x)) · P x        (the step's end stands on both sides: an implicit step never overshoots)

which is one unknown number, u = θ'·x, found by Newton's method; then P loses h/(1 + h·s) · P x xᵀ P with
h = w·σ(u)(1 − σ(u)) and s = xᵀ P x. This is the one-pass update of Li et al. 2025 (arXiv 2502.07193): online mirror
descent whose local norm is the sum of the Hessians so far. Forgetting draws P back towards the prior. Knows neither
texts nor people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loreloop.learn.loop.reward.features import Row

Floats = NDArray[np.float64]
STEPS = 12  # of Newton's method; the equation is monotone, and a handful suffices
LEAST_CURVATURE = 0.02  # σ(u)(1 − σ(u)) of an event that is certain already still says that much


@dataclass(frozen=True)
class Prior:
    """Variances of the weights before anything is known. Measured: a tenth and a bit less than that rank held-out
    answers best; larger ones let words outvote the form."""

    form: float = 0.1
    hashed: float = 0.06


class Head:
    """`n_form` dense numbers and `n_hashed` places. `keep` is the share of what is known that is left after an
    event."""

    def __init__(self, n_form: int, n_hashed: int, prior: Prior, keep: float = 1.0) -> None:
        self.prior, self.keep = prior, keep
        self.mean: Floats = np.zeros(n_form)
        self.means: Floats = np.zeros(n_hashed)
        self.covariance: Floats = np.eye(n_form) * prior.form
        self.variances: Floats = np.full(n_hashed, prior.hashed)
        self.touched = np.zeros(n_hashed, np.int64)  # the event after which a variance is as it stands
        self.n_events = 0

    def raw(self, row: Row) -> float:
        """θ·x."""
        return float(self.mean @ row.form + self.means[row.places] @ row.values)

    def learn(self, row: Row, outcome: float, weight: float = 1.0) -> None:
        """One event: `outcome`, from 0 to 1, is what σ(θ·x) should have been."""
        self._forget(row)
        self.n_events += 1
        reach = self._reach(row)
        self._step(row, reach, outcome, weight)
        chance = sigmoid(self.raw(row))
        self._narrow(reach, max(chance * (1 - chance), LEAST_CURVATURE) * weight)

    def repeat(self, row: Row, outcome: float, weight: float) -> None:
        """An event that was learned from before: the mean moves, and nothing becomes more certain."""
        self._step(row, self._reach(row), outcome, weight)

    def pull(self, row: Row, precision: float) -> None:
        """Draws θ·x towards 0, as a measurement of 0 with this precision would."""
        reach, before = self._reach(row), self.raw(row)
        size = precision / (1 + precision * reach.spread)
        self._move(row, reach, -size * before)
        self._narrow(reach, precision)

    def begin_anew(self, share: float) -> None:
        """Nothing is certain any more, and of the weights `share` is left; a negative one turns them round."""
        self.mean *= share
        self.means *= share
        self.covariance = np.eye(len(self.mean)) * self.prior.form
        self.variances[:] = self.prior.hashed
        self.touched[:] = self.n_events

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All that the head is, by name."""
        return {
            "mean": self.mean,
            "means": self.means,
            "covariance": self.covariance,
            "variances": self.variances,
            "touched": self.touched,
            "n_events": np.array(self.n_events),
        }

    def take(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Becomes what `arrays` gave. ValueError where the shapes are of another head."""
        for name, array in self.arrays().items():
            if arrays[name].shape != array.shape:
                raise ValueError(f"{name} has the shape {arrays[name].shape}, not {array.shape}")
        self.mean = arrays["mean"].astype(np.float64)
        self.means = arrays["means"].astype(np.float64)
        self.covariance = arrays["covariance"].astype(np.float64)
        self.variances = arrays["variances"].astype(np.float64)
        self.touched = arrays["touched"].astype(np.int64)
        self.n_events = int(arrays["n_events"])

    def _reach(self, row: Row) -> _Reach:
        form = self.covariance @ row.form
        hashed = self.variances[row.places] * row.values
        return _Reach(form, hashed, row.places, float(row.form @ form + hashed @ row.values))

    def _step(self, row: Row, reach: _Reach, outcome: float, weight: float) -> None:
        self._move(row, reach, weight * implicit_error(self.raw(row), outcome, weight * reach.spread))

    def _move(self, row: Row, reach: _Reach, size: float) -> None:
        self.mean += size * reach.form
        self.means[row.places] += size * reach.hashed

    def _narrow(self, reach: _Reach, curvature: float) -> None:
        size = curvature / (1 + curvature * reach.spread)
        self.covariance -= size * np.outer(reach.form, reach.form)
        self.variances[reach.places] -= size * reach.hashed**2

    def _forget(self, row: Row) -> None:
        """What is known fades: 1/P ← keep · 1/P + (1 − keep) · 1/prior. A hashed weight fades when it is next met, by
        as many events as have passed, so that an event costs what it touches and no more."""
        if self.keep == 1.0:
            return
        known = np.linalg.inv(self.covariance)
        faded = self.keep * known + (1 - self.keep) / self.prior.form * np.eye(len(known))
        self.covariance = np.linalg.inv(faded).astype(np.float64)
        left = np.power(self.keep, self.n_events + 1 - self.touched[row.places], dtype=np.float64)
        faded_too = left / self.variances[row.places] + (1 - left) / self.prior.hashed
        self.variances[row.places] = 1 / faded_too
        self.touched[row.places] = self.n_events + 1


@dataclass(frozen=True)
class _Reach:
    """P x, in its two parts, and s = xᵀ P x: how far one unit of error moves the weights, and θ·x."""

    form: Floats
    hashed: Floats
    places: NDArray[np.int64]
    spread: float


def implicit_error(before: float, outcome: float, reach: float) -> float:
    """g = y − σ(z + reach · g): the error that is left where the step ends."""
    error = outcome - sigmoid(before)
    for _ in range(STEPS):
        chance = sigmoid(before + reach * error)
        excess = outcome - chance - error
        error += excess / (1 + reach * chance * (1 - chance))
        if abs(excess) < 1e-10:
            break
    return error


def sigmoid(x: float) -> float:
    """1 / (1 + exp(−x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

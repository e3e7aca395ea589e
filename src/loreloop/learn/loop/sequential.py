"""When a canary is decided: tests that may be looked at after every episode, and one last look at its end.

Three questions, each about the difference of candidate and champion and a value that it is held against: is it below
the harm that is borne, is it above no gain, is it above the loss of a candidate that need only be no worse. The
evidence for "above" is the capital of a gambler: a mixture of likelihood ratios exp(δ·S − δ²·I/2) over a few
differences δ, with the information I = 1/variance and the score S = (difference − value)·I (Robbins 1970, "Statistical
methods related to the law of the iterated logarithm"). Where the difference is not above the value, it reaches 1/α with
a chance of α at most, whenever one looks.

That is exact for a Brownian motion, and asymptotic here: S at growing information is one for efficient estimates
(Scharfstein, Tsiatis and Robins 1997). `python -m bench.loop_gate` measures what it comes to with few persons, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from loreloop.learn.loop.clustered import Episode, Estimate, estimate

# A trial that is bounded spends most of its chance of error at the end, where it knows most, and little on the way, so
# that only a plain difference ends it early (as Haybittle and Peto have it for clinical trials).
EARLY_SHARE = 0.05
# The differences that are betted on, in those that are worth finding, with their shares of the capital. The large ones
# find what is plain within a few episodes.
BETS = ((1.0, 0.5), (2.5, 0.25), (6.0, 0.25))
LARGEST = 1e300


@dataclass(frozen=True)
class Trial:
    """What a canary is decided by. `harm` is the loss that is borne, `gain` the difference worth finding, `margin` the
    loss that has to be ruled out where no gain is needed; counts are of episodes: `least` of either arm, `most` of both
    arms together."""

    gain: float = 0.05
    harm: float = 0.02
    margin: float = 0.05
    false_promotion: float = 0.02
    false_alarm: float = 0.02
    least: int = 20
    most: int = 3000
    needs_gain: bool = True

    @property
    def against(self) -> float:
        """The difference that has to be exceeded for a promotion."""
        return 0.0 if self.needs_gain else -self.margin

    @property
    def early(self) -> float:
        """The evidence that promotes before the end."""
        return 1 / (self.false_promotion * EARLY_SHARE)


@dataclass(frozen=True)
class Interval:
    """Where a difference lies, with both ends."""

    low: float
    high: float


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


def judge(episodes: Sequence[Episode], trial: Trial, *, is_last: bool = False) -> Outcome:
    """What the judged episodes say so far. A wrong promotion has a chance of `false_promotion` at most, whenever this
    is asked, and a wrong alarm one of `false_alarm`. The last look is taken when there are as many episodes as the
    trial may have, or where `is_last` says that its time is over; behind it nothing is open."""
    found = estimate(episodes)
    n_candidate = sum(one.is_candidate for one in episodes)
    gain = evidence(found, trial.against, trial.gain)
    loss = evidence(mirrored(found), trial.harm, trial.gain)
    # Harm ends a trial from its first episodes on; all else waits until there are some.
    if loss >= 1 / trial.false_alarm:
        return Outcome("harmful", gain, loss)
    enough = min(n_candidate, len(episodes) - n_candidate) >= trial.least
    promotes = "better" if trial.needs_gain else "no_harm"
    if enough and gain >= trial.early:
        return Outcome(promotes, gain, loss)
    if not is_last and len(episodes) < trial.most:
        return Outcome("open", gain, loss)
    p = NormalDist().cdf(-found.z(trial.against))
    fine = enough and p <= trial.false_promotion * (1 - EARLY_SHARE)
    return Outcome(promotes if fine else "no_better", gain, loss, p)


def evidence(found: Estimate, against: float, worth: float) -> float:
    """The capital of a gambler who bets that the difference is above `against`; `worth` is the difference that is worth
    finding. 1 where nothing is known."""
    return capital(found.z(against), found.variance, worth)


def capital(z: float, variance: float, worth: float) -> float:
    """The mixture of likelihood ratios at z standard errors."""
    spread = math.sqrt(variance)
    powers = [(share, factor * worth / spread) for factor, share in BETS]
    total = sum(share * math.exp(min(600.0, bet * z - bet * bet / 2)) for share, bet in powers)
    return min(total, LARGEST)


def mirrored(found: Estimate) -> Estimate:
    """The same with the arms in each other's place."""
    return Estimate(
        difference=-found.difference,
        variance=found.variance,
        freedom=found.freedom,
        candidate_persons=found.champion_persons,
        champion_persons=found.candidate_persons,
    )


def confidence(found: Estimate, alpha: float, worth: float) -> Interval:
    """The interval of the difference, one of a sequence that holds it at all times at once with a chance of 1 − α: the
    values against which neither gambler, on more or on less, has 2/α."""
    if math.isinf(found.variance):
        return Interval(-1.0, 1.0)
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if capital(middle, found.variance, worth) >= 2 / alpha else (middle, high)
    width = found.distance(high)
    return Interval(max(-1.0, found.difference - width), min(1.0, found.difference + width))

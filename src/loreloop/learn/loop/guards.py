"""Whether a policy gets better, or only better at its reward: measures side by side, and alarms when they part.

The proxy is the reward that is optimised. Beside it stand measures that nothing optimises: golden ones, by metric (what
is liked and what is right are two), a second reward model that has seen other people, the distance from the promoted
revision, and the form of the answers. Where the proxy rises and a golden measure falls, the policy has learned the
reward and not the task; training stops, and the last revision without such an alarm stays. Distance is √KL, along which
rewards were found to part (Gao et al. 2022, arXiv 2210.10760). Knows neither how answers are drawn nor where revisions
are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

MOST_SURE = 1e-9


class Measure(msgspec.Struct, frozen=True):
    """A mean with its standard error, over `n` values."""

    mean: float
    error: float = 0.0
    n: int = 0


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """All measures of one revision. `golden` are means over the newest golden part, by metric, the more the better;
    `kl` is in nats an answer, from the promoted revision. None where something is not measured."""

    revision: str
    proxy: Measure
    golden: Mapping[str, Measure]
    second: Measure | None = None
    kl: float = 0.0
    length: Measure  # tokens, or words, an answer
    refusals: Measure
    tool_errors: Measure
    repetition: Measure
    created: float = 0.0


class GuardLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an alarm comes. `sigmas`: how many standard errors count as a rise or a fall. `sqrt_kl`: the budget of
    distance. `length_times`: how many times as long answers may become, or as short. The others are rises of shares."""

    sigmas: float = 2.5
    sqrt_kl: float = 4.0
    length_times: float = 1.6
    refusals: float = 0.05
    tool_errors: float = 0.05
    repetition: float = 0.1


class Alarm(msgspec.Struct, frozen=True):
    """What parted, in a word and in a sentence with its numbers; `stops` says that training must not go on."""

    name: str
    sentence: str
    stops: bool = True


class Verdict(msgspec.Struct, frozen=True):
    """What to do: go on or stop, with which revision to stay, and why."""

    stop: bool
    last_good: str
    alarms: tuple[Alarm, ...]


class Guard:
    """Compares readings with that of the revision from which training began. A stop is final: it lasts until a new
    guard begins from a revision that somebody has chosen."""

    def __init__(self, baseline: Reading, limits: GuardLimits | None = None) -> None:
        self.limits = limits or GuardLimits()
        self.readings = [baseline]
        self.last_good = baseline.revision
        self.stopped = False

    def take(self, reading: Reading) -> Verdict:
        """What a revision's reading says."""
        alarms = (*self._parted(reading), *self._second(reading), *self._distance(reading), *self._form(reading))
        self.readings.append(reading)
        self.stopped = self.stopped or any(alarm.stops for alarm in alarms)
        if not self.stopped:
            self.last_good = reading.revision
        return Verdict(self.stopped, self.last_good, alarms)

    def _parted(self, reading: Reading) -> list[Alarm]:
        """The golden measures fall, while the proxy rises or by themselves; each against its best reading so far."""
        found = []
        rises = self._moved(self.readings[0].proxy, reading.proxy) > self.limits.sigmas
        for metric, now in reading.golden.items():
            before = [one.golden[metric] for one in self.readings if metric in one.golden]
            if not before:
                continue
            best = max(before, key=lambda one: one.mean)
            if self._moved(best, now) < -self.limits.sigmas:
                proxy = f"{self.readings[0].proxy.mean:.3f} to {reading.proxy.mean:.3f}"
                what = f"the proxy went from {proxy}" + (", which is a rise" if rises else "")
                sentence = f"golden {metric} fell from {best.mean:.3f} to {now.mean:.3f} while {what}"
                found.append(Alarm("parted" if rises else "golden_fell", sentence))
        return found

    def _second(self, reading: Reading) -> list[Alarm]:
        first = self.readings[0]
        if first.second is None or reading.second is None:
            return []
        rises = self._moved(first.proxy, reading.proxy) > self.limits.sigmas
        if not rises or self._moved(first.second, reading.second) > -self.limits.sigmas:
            return []
        numbers = f"{first.second.mean:.2f} to {reading.second.mean:.2f}"
        proxy = f"{first.proxy.mean:.2f} to {reading.proxy.mean:.2f}"
        sentence = (
            f"a second reward, which nothing optimises, fell from {numbers} while the first one rose from {proxy}"
        )
        return [Alarm("second_opinion", sentence)]

    def _distance(self, reading: Reading) -> list[Alarm]:
        distance = math.sqrt(max(0.0, reading.kl))
        if distance <= self.limits.sqrt_kl:
            return []
        budget = f"{distance:.2f} from the promoted revision; {self.limits.sqrt_kl:g} is the budget"
        return [Alarm("kl", f"the square root of KL is {budget}")]

    def _form(self, reading: Reading) -> list[Alarm]:
        first, limits, found = self.readings[0], self.limits, []
        times = reading.length.mean / max(first.length.mean, MOST_SURE)
        if not 1 / limits.length_times <= times <= limits.length_times:
            sentence = f"answers went from a length of {first.length.mean:.1f} to {reading.length.mean:.1f}"
            # Shorter or longer may be what people want; together with a golden measure that falls, it is not.
            found.append(Alarm("length", sentence, stops=False))
        for name, most in (
            ("refusals", limits.refusals),
            ("tool_errors", limits.tool_errors),
            ("repetition", limits.repetition),
        ):
            before, now = getattr(first, name), getattr(reading, name)
            if now.mean - before.mean > most and self._moved(before, now) > limits.sigmas:
                found.append(Alarm(name, f"{name} rose from {before.mean:.3f} to {now.mean:.3f}"))
        return found

    @staticmethod
    def _moved(before: Measure, now: Measure) -> float:
        """The difference in its standard errors."""
        return (now.mean - before.mean) / max(math.hypot(before.error, now.error), MOST_SURE)


def measured(values: Sequence[float]) -> Measure:
    """Mean and standard error of some values, each of an answer to a prompt of its own."""
    if not values:
        return Measure(0.0)
    array = np.asarray(values, np.float64)
    spread = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Measure(float(array.mean()), spread / math.sqrt(len(array)), len(array))

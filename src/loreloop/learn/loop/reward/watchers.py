"""Two watchers over a stream of events: how much each person has counted, and whether tastes have changed.

Knows neither answers nor weights.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import msgspec

from loreloop.learn.loop.reward.events import NOBODY, LabelledEvent

DAY = 86_400.0
LEAST = 0.05  # of an event's weight that is learned from at all
MOST_SINCE = 400  # events since a change that are looked at; a change that shows more slowly fades in by itself
LARGEST_SHARE = 0.25  # of an alarm, that one person of many may be
TOGETHER = 1.2  # times the limit, that all together may reach where they are few


class Ledger:
    """Nobody counts for more than `cap` events at a time; what a person has said counts half after `half_life_days`,
    and makes room again. So a thousand votes of one person in a day move a reward as `cap` votes do."""

    def __init__(self, cap: float, half_life_days: float) -> None:
        self.cap, self.half_life = cap, half_life_days * DAY
        self.spent: dict[str, tuple[float, float]] = {}  # by person: how much, and when

    def allowed(self, person: str, weight: float, at: float) -> float:
        """How much of an event's weight counts; it is written down as spent."""
        spent, before = self.spent.get(person, (0.0, at))
        # Feedback may come late, and older than what was counted before it; then nothing fades.
        left = spent * 0.5 ** (max(0.0, at - before) / self.half_life)
        counts = max(0.0, min(weight, self.cap - left))
        # What a second has forgiven is not worth a step, and waits until it has grown.
        counts = counts if counts >= LEAST * weight else 0.0
        self.spent[person] = (left + counts, max(at, before))
        return counts

    def counted(self, event: LabelledEvent) -> float:
        """`allowed` for an event; what is nobody's opinion has no cap."""
        if event.person == NOBODY:
            return event.weight
        return self.allowed(event.person, event.weight, event.created)

    def state(self) -> dict[str, list[float]]:
        """What was spent, as JSON can hold it."""
        return {person: [*spent] for person, spent in self.spent.items()}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Takes back what `state` gave."""
        self.spent = {person: (spent, at) for person, (spent, at) in state.items()}


class Surprise(msgspec.Struct, frozen=True):
    """One event since the excess was last at 0: whose it was, and how much better a coin would have told it, in
    nats."""

    person: str
    excess: float


class ChangeWatch:
    """Tells when a coin would by now predict people better than the reward does.

    A CUSUM (Page 1954): the excess S grows by log(½ / p) with every event, where p is the chance that the reward gave
    to what was said, and does not fall below 0. An alarm comes when S passes `limit`: e^limit to one that it is no
    chance. Of one person no more than a quarter of the limit counts, so that no few people can make a reward forget; of
    a few people who are all that there are, each may count for a little more than an equal part, so that they can
    together.
    """

    def __init__(self, limit: float = 6.5) -> None:
        self.limit = limit
        self.since: list[Surprise] = []

    def take(self, person: str, chance: float, weight: float = 1.0, n_persons: int = 40) -> bool:
        """Takes in an event; says whether there is an alarm. `since` then holds the events since the change.
        `n_persons` are all who have lately spoken."""
        self.since.append(Surprise(person, weight * math.log(0.5 / max(chance, 1e-6))))
        self.since = self.since[-MOST_SINCE:]
        if sum(one.excess for one in self.since) <= 0:
            self.since = []
            return False
        return self.excess(n_persons) > self.limit

    def excess(self, n_persons: int = 40) -> float:
        """S, in which nobody counts for more than their share of the limit."""
        most = self.limit * max(LARGEST_SHARE, TOGETHER / max(1, n_persons))
        by_person: defaultdict[str, float] = defaultdict(float)
        for one in self.since:
            by_person[one.person] += one.excess
        return sum(min(excess, most) for excess in by_person.values())

    def state(self) -> list[Any]:
        """What was taken in since the excess was 0, as JSON can hold it."""
        return [[one.person, one.excess] for one in self.since]

    def restore(self, state: list[Any]) -> None:
        """Takes back what `state` gave."""
        self.since = [Surprise(str(person), float(excess)) for person, excess in state]

"""How many requests are before one that waits, and about how long they will take: for clients that ask after it.

Both are estimates: keys take turns, and nobody knows how long an answer becomes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from loreloop.host.dispatcher import Dispatcher
from loreloop.store import activity

SAME_MOMENT_SECONDS = 1.0


class Place(NamedTuple):
    """`n_before` requests are before this one; `seconds` until its turn, None where nothing has ended lately."""

    n_before: int
    seconds: float | None

    def in_words(self) -> str:
        """The same as a client shows it to its user."""
        before = "1 request is" if self.n_before == 1 else f"{self.n_before} requests are"
        about = "" if self.seconds is None else f"; its turn comes in about {max(1, round(self.seconds))} s"
        return f"{before} before this one{about}"


@dataclass
class Places:
    """Where samples stand, counted once for all that ask in the same moment. One per HTTP process."""

    n_before: dict[str, int] = field(default_factory=dict)
    counted: float = -math.inf

    def of_sample(self, dispatcher: Dispatcher, request_id: str) -> Place | None:
        """None where a sample is being drawn, has ended, or comes next."""
        ticket, now = dispatcher.tickets.get(request_id), time.monotonic()
        if ticket is None or ticket.result is not None:
            return None
        engines = dispatcher.engines[ticket.base_model].all
        if ticket.engine is not None and not any(engine.queues.waiting_samples for engine in engines):
            return None
        # Two thousand may ask at once, and each would go through all.
        if now - self.counted > SAME_MOMENT_SECONDS:
            self.n_before, self.counted = _samples_before(dispatcher), now
        n_running = sum(engine.queues.running_samples for engine in engines)
        paces = [engine.counts.sample_pace.seconds_each(now) for engine in engines]
        return _place(self.n_before.get(request_id, 0) - n_running, paces)


def _samples_before(dispatcher: Dispatcher) -> dict[str, int]:
    """For each sample that has not ended, how many of its base model came earlier and have not either."""
    found, n_seen = dict[str, int](), Counter[str]()
    for request_id, ticket in dispatcher.tickets.items():  # in the order in which they came
        if ticket.result is None:
            found[request_id] = n_seen[ticket.base_model]
            n_seen[ticket.base_model] += 1
    return found


def place_of_operation(dispatcher: Dispatcher, request_id: str) -> Place | None:
    """Where a training operation stands; None where it is being executed, has ended, or nothing is before it."""
    run = dispatcher.store.read(activity.unfinished_before, request_id)
    if run is None:
        return None
    engine = dispatcher.engines[run.base_model].training
    if request_id in engine.executing:
        return None
    pace = engine.counts.operation_pace.seconds_each(time.monotonic())
    return _place(run.n_before, [pace])


def _place(n_before: int, paces: list[float | None]) -> Place | None:
    if n_before <= 0:
        return None
    # Engines that draw at the same time shorten the wait together.
    rates = [1 / pace for pace in paces if pace]
    return Place(n_before, n_before / sum(rates) if rates else None)

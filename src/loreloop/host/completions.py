"""Which samples of a client have ended, told in one poll for all of them instead of one poll for each.

A client says how far it has heard. Numbers of ends begin at the clock, so that those of a later process are larger than
those of an earlier one, and nobody misses an end after a restart.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakValueDictionary

from loreloop.protocol.paths import owner_of

CLONE = 1_000_000_000  # the SDK gives each copy of a client as many sequence ids
SAMPLE = ":sample:"
MOST_DIGITS = 19  # of integers of 63 bits


class Target(NamedTuple):
    """A sampler, and the number of the client's copy that asks; 0 is the first one."""

    sampler_id: str
    clone: int


class Completion(NamedTuple):
    """The end of one request."""

    number: int
    request_id: str
    failed: bool


class Heard(NamedTuple):
    """Ends that a client has not heard of, and the number up to which it has heard with them."""

    completions: list[Completion]
    cursor: int


@dataclass
class Completions:
    """One per HTTP process; lives on its event loop."""

    last: int = field(default_factory=lambda: time.time_ns() // 1000)
    ends: dict[Target, dict[str, Completion]] = field(default_factory=lambda: defaultdict(dict))
    # Whoever waits holds the event; of targets that nobody waits for nothing is kept.
    waiting: WeakValueDictionary[Target, asyncio.Event] = field(default_factory=WeakValueDictionary)

    def ended(self, request_id: str, *, failed: bool) -> None:
        """Notes an end and wakes who waits for it. Samples that came by another API are nobody's to hear of."""
        target = target_of(request_id)
        if target is None:
            return
        self.last += 1
        self.ends[target][request_id] = Completion(self.last, request_id, failed)
        if event := self.waiting.pop(target, None):
            event.set()

    def forget(self, request_id: str) -> None:
        """Lets go of an end: its result has been fetched, or has expired."""
        target = target_of(request_id)
        if target is None or target not in self.ends:
            return
        self.ends[target].pop(request_id, None)
        if not self.ends[target]:
            del self.ends[target]

    async def since(self, target: Target, cursor: int, seconds: float) -> Heard:
        """The ends after a cursor, at once where there are any, else when the first one comes or the time is over."""
        if cursor > self.last:
            # Of before the clock was put back, or another folder was restored: it would wait for a number for ever.
            cursor = 0
        try:
            async with asyncio.timeout(seconds):
                while not (found := self._after(target, cursor)):
                    # Several polls may wait for the same target, and one event wakes them all.
                    event = self.waiting.setdefault(target, asyncio.Event())
                    await event.wait()
        except TimeoutError:
            found = []
        return Heard(found, found[-1].number if found else cursor)

    def _after(self, target: Target, cursor: int) -> list[Completion]:
        # In the order of their numbers, as a dictionary keeps what comes in.
        return [end for end in self.ends.get(target, {}).values() if end.number > cursor]


def target_of(request_id: str) -> Target | None:
    """Whose request it is; None for what did not come by a sampler of the SDK."""
    if SAMPLE not in request_id:
        return None
    seq_id = request_id.rpartition(":")[2]
    # More digits than any sequence id has would take long to read, or be refused by Python itself.
    is_number = seq_id.isdecimal() and len(seq_id) <= MOST_DIGITS
    return Target(owner_of(request_id), int(seq_id) // CLONE) if is_number else None

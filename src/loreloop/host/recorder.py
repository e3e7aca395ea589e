"""Keeps turns in the background: nobody who is answered waits for it.

What waits is bounded, in number and bytes; what comes on top is dropped, counted and told. Turns become rows in
batches, in a thread. Knows no route and no text: how a turn is made is a function it is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from loreloop.protocol.episodes import Whereabouts
from loreloop.protocol.errors import LoreloopError, outcome_of
from loreloop.store import turn_keeping, turns
from loreloop.store.store import Store
from loreloop.store.turn_bodies import NewTurn
from loreloop.store.turns import Known, State

LOG = logging.getLogger(__name__)
MOST_REMEMBERED = 10_000  # turns that not even the store took, or that nobody wanted
MAX_BATCH = 256


@dataclass(frozen=True)
class Bounds:
    """How much may wait, and how long the first turn of a batch waits for others: one commit for many turns takes less
    of everybody's time."""

    turns: int = 2000
    n_bytes: int = 64 << 20
    pause_seconds: float = 0.1


@dataclass(frozen=True)
class Waiting:
    """A turn that is to be kept. `trace` is what is told of it if it is dropped; `make` puts it together, in a thread;
    `n_bytes` is about what it holds in memory."""

    trace: NewTurn
    make: Callable[[], NewTurn]
    n_bytes: int


@dataclass
class RecorderCounts:
    """Turns since this process began."""

    kept: int = 0
    dropped: int = 0


class Recorder:
    """One per HTTP process; lives on its event loop. Its task ends when there is nothing to do."""

    def __init__(self, store: Store, bounds: Bounds | None = None) -> None:
        self.store, self.bounds, self.counts = store, bounds or Bounds(), RecorderCounts()
        self.waiting: deque[Waiting] = deque()
        self.traces: deque[NewTurn] = deque()
        self.n_bytes = 0
        self.pending: dict[str, NewTurn] = {}  # ids that were given out, whose turns are not kept yet
        self.dropped: dict[str, NewTurn] = {}  # the newest last
        self.unrecorded: dict[str, NewTurn] = {}  # answers of deployments that do not record, the newest last
        self.task: asyncio.Task[None] | None = None
        self.is_closing = False

    def open(self, trace: NewTurn) -> None:
        """An id goes out before its answer has ended."""
        self.pending[trace.id] = trace

    def pass_over(self, trace: NewTurn) -> None:
        """An answer that is not to be kept, so that who speaks of it soon can be told why nobody knows it."""
        _note(self.unrecorded, trace)

    def put(self, turn: Waiting) -> None:
        """Takes a turn; never waits. Where there is no room it is dropped."""
        if len(self.waiting) >= self.bounds.turns or self.n_bytes + turn.n_bytes > self.bounds.n_bytes:
            self.drop(turn.trace)
            return
        self.pending[turn.trace.id] = turn.trace
        self.n_bytes += turn.n_bytes
        self.waiting.append(turn)
        self._work()

    def drop(self, trace: NewTurn) -> None:
        """A turn that cannot be kept, of which only this is told."""
        self._forget(trace)
        # Traces are bounded too: behind a disk that takes nothing they would pile up.
        if len(self.traces) < self.bounds.turns:
            self.traces.append(trace)
            self._work()

    def whereabouts(self, turn_id: str) -> Whereabouts:
        """Where a turn is. Feedback on a pending one can be taken: it will be kept, or found dropped."""
        found = self.find(turn_id)
        if found is None or found.level != "inference" or found.state == "unrecorded":
            return "unknown"
        return found.state

    def find(self, id: str) -> Known | None:
        """What is known of a turn's id, or of an episode's, on its way or kept; None where nothing is."""
        return next(iter(self.issued(id)), None)

    def issued(self, id: str) -> list[Known]:
        """What is known of a turn's id, on its way or kept, or else of all episodes of this id; nothing where that is
        none."""
        ways: tuple[tuple[State, dict[str, NewTurn]], ...] = (
            ("pending", self.pending),
            ("dropped", self.dropped),
            ("unrecorded", self.unrecorded),
        )
        for state, traces in ways:
            if (trace := traces.get(id)) is not None:
                return [_known(trace, state)]
        found = self.store.read(turns.known, id)
        if found and found[0].level == "inference":
            return found
        episodes = {(one.deployment, one.key_id): one for one in found}
        # Few are on their way at any time, and few are asked for before their first turn is there.
        for trace in self.pending.values():
            if trace.episode_id == id:
                known = _known(trace, "pending")
                known = msgspec.structs.replace(known, id=id, level="episode", user=None)
                episodes.setdefault((trace.deployment, trace.key_id), known)
        return [*episodes.values()]

    async def flush(self) -> None:
        """Returns when everything that was put is kept or dropped."""
        while self.task is not None:
            await asyncio.wait({self.task})

    async def close(self) -> None:
        """Keeps what waits, without a pause."""
        self.is_closing = True
        await self.flush()

    def _work(self) -> None:
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self._keep_all(), name="recorder")

    async def _keep_all(self) -> None:
        try:
            while self.waiting or self.traces:
                if not self.is_closing and len(self.waiting) < MAX_BATCH:
                    await asyncio.sleep(self.bounds.pause_seconds)
                await self._keep_some()
        finally:
            self.task = None

    async def _keep_some(self) -> None:
        batch = [self.waiting.popleft() for _ in range(min(MAX_BATCH, len(self.waiting)))]
        traces = [self.traces.popleft() for _ in range(min(MAX_BATCH, len(self.traces)))]
        self.n_bytes -= sum(turn.n_bytes for turn in batch)
        made = await asyncio.to_thread(lambda: [_made(turn) for turn in batch])
        try:
            n_kept = await self.store.write(turn_keeping.keep, [*made, *traces])
        except LoreloopError as error:
            # A full disk, or a server that stops: the answers are out, and only their records are lost.
            LOG.warning("%d turns were not recorded: %s", len(batch), error.message)
            for turn in batch:
                self._forget(turn.trace)
            return
        self.counts.kept += n_kept
        self.counts.dropped += len(batch) - n_kept
        for turn in batch:
            self.pending.pop(turn.trace.id, None)

    def _forget(self, trace: NewTurn) -> None:
        self.counts.dropped += 1
        self.pending.pop(trace.id, None)
        _note(self.dropped, trace)


def _note(traces: dict[str, NewTurn], trace: NewTurn) -> None:
    traces[trace.id] = trace
    if len(traces) > MOST_REMEMBERED:
        del traces[next(iter(traces))]


def _known(trace: NewTurn, state: State) -> Known:
    return Known(
        id=trace.id,
        level="inference",
        deployment=trace.deployment,
        key_id=trace.key_id,
        state=state,
        user=trace.user,
    )


def _made(turn: Waiting) -> NewTurn:
    """The turn put together. One that cannot be is dropped alone, and its batch goes on."""
    made = outcome_of(turn.make)
    if isinstance(made, NewTurn):
        return made
    LOG.error("the turn %s could not be recorded", turn.trace.id, exc_info=made)
    return turn.trace

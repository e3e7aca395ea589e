"""The HTTP process of a simulated world: the real store, dispatcher and sweeper, on a loop and a disk that are not.

Its clients' coroutines run on its loop, as its routes would, and end with it; the clients go on with the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

from loreloop.config import Config, SessionConfig
from loreloop.host.dispatcher import Dispatcher
from loreloop.host.sweeper import Sweeper
from loreloop.protocol.errors import LoreloopError
from loreloop.protocol.syncing import SyncFailed
from loreloop.store.inspection import inspect_data
from loreloop.store.store import Store
from tests.simulation.disk import Disk, Process
from tests.simulation.timeline import SimulatedLoop, Timeline
from tests.simulation.wire import Wire

EPOCH = 1_000_000.0
KEEPING = Config(session=SessionConfig(expiry_seconds=1e9, result_ttl_seconds=1e9))  # whatever a clock says
COMMIT_SECONDS = (0.0, 0.002, 0.002, 0.02, 0.3)  # how long the writer may take to come to what waits


class Client(Protocol):
    """Whoever speaks to a server, one after the other."""

    @property
    def is_done(self) -> bool: ...

    async def live(self, server: Server) -> None: ...


class Clock:
    """The time of day, which may be put forward or back."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline, self.off_seconds = timeline, 0.0

    def now(self) -> float:
        return EPOCH + self.timeline.now + self.off_seconds


class Server:
    """One life of the HTTP process. Opening may raise what a start of the real one does."""

    def __init__(
        self, timeline: Timeline, disk: Disk, clock: Clock, chance: random.Random, clients: Sequence[Client]
    ) -> None:
        self.timeline, self.disk, self.clock, self.chance = timeline, disk, clock, chance
        self.process = disk.new_process(Process("server"))
        self.store: Store | None = None
        self.dispatcher: Dispatcher | None = None
        self.tasks: set[asyncio.Task[None]] = set()  # a loop alone does not keep them
        self.loop = SimulatedLoop(timeline)
        self.wires: list[Wire] = []
        self.trouble: list[str] = []  # errors of ours that a task ended with
        self.commit_is_due = False
        with self.turn():
            inspect_data(disk.root)
            store = self.store = Store(disk.root, "power", own_thread=False)
            store.segments.segment_bytes = chance.choice((600, 5000, 1 << 20))
            n_pages = chance.choice((10, 60, 1000))
            with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f"PRAGMA wal_autocheckpoint={n_pages}")
        self.loop.call_soon(self._begin, clients)

    def _begin(self, clients: Sequence[Client]) -> None:
        self.dispatcher = Dispatcher(KEEPING, self.store, ("fake",), self.clock.now)
        self.sweeper = Sweeper(self.dispatcher)
        for client in clients:
            self._task(partial(client.live, self))
        self.timeline.after(self.chance.uniform(2.0, 8.0), self._sweep)

    @property
    def is_alive(self) -> bool:
        return not self.process.is_dead

    @property
    def n_engine_deaths(self) -> int:
        """Engines that have died under it, as it counts them."""
        return self.dispatcher.engines["fake"].training.counts.n_deaths

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """What happens in the block is done by this process, which ends where its disk refuses a sync."""
        before, self.disk.running = self.disk.running, self.process
        try:
            yield
        except SyncFailed:
            self.process.is_dead = True
        finally:
            self.disk.running = before

    def run(self) -> bool:
        """Has the loop run what is ready; False where nothing is."""
        if not self.loop.ready:
            return False
        with self.turn():
            self.loop.run_ready()
        self._look_after_writes()
        return True

    def _look_after_writes(self) -> None:
        if self.is_alive and not self.commit_is_due and not self.store.jobs.empty():
            self.commit_is_due = True
            self.timeline.after(self.chance.choice(COMMIT_SECONDS), self._commit)

    def _commit(self) -> None:
        self.commit_is_due = False
        if self.is_alive:
            with self.turn():
                self.store.write_waiting()
            self._look_after_writes()

    def accept(self, wire: Wire) -> None:
        """An engine has connected."""
        self.wires.append(wire)
        self._task(partial(self.dispatcher.serve_engine, wire.connection))

    def _sweep(self) -> None:
        if self.is_alive:
            self._task(self._sweep_once)
            self.timeline.after(self.chance.uniform(2.0, 8.0), self._sweep)

    async def _sweep_once(self) -> None:
        with contextlib.suppress(LoreloopError, OSError):  # as the sweeper itself does
            await self.sweeper.sweep(self.clock.now())

    def _task(self, work: Callable[[], Awaitable[None]]) -> None:
        task = self.loop.create_task(self._guarded(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        # Only errors that have a name are expected here; any other one is a bug, and is found among the loop's errors.
        try:
            await work()
        except LoreloopError as error:
            self.trouble.append(error.message)

    def bury(self) -> None:
        """After its death: what it held is given back, and nothing of it is written any more."""
        self.process.is_dead = True
        if self.store:
            with self.store.gate:
                self.store.is_closed = True
        with self.turn(), contextlib.suppress(LoreloopError):
            self.loop.end()
        if self.store:
            with self.turn():
                self.store.readers.shutdown()
                self.store.reader.close()
                self.store.engine.dispose()
                self.store.segments.close()
        for wire in self.wires:
            wire.server_ended(lossy=self.chance.random() < 0.5)

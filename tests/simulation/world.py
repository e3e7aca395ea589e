"""A simulated world: one seed says what its clients ask, when anything happens, and what goes wrong.

First the storm, with faults; then the healing, after which everything must come to its end within bounded ticks; then
the power goes once more, and what was told must be there, and go on from there.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from loreloop.protocol.errors import BadRequest, LoreloopError
from loreloop.protocol.syncing import SyncFailed
from loreloop.protocol.training import LoraSpec, SavedResult, SaveState
from loreloop.store import checkpoints, journal, keys, runs, sessions
from loreloop.store.rows import RunRow, SessionNew
from loreloop.store.store import Store
from tests.simulation.clients import KINDS, SamplingClient, TrainingClient, sample_script, script
from tests.simulation.disk import Disk, Fault, Killed, Process
from tests.simulation.engine import EngineProcess, Pace
from tests.simulation.ledger import Ledger
from tests.simulation.server import Client, Clock, Server
from tests.simulation.sqlite_files import VFS
from tests.simulation.timeline import Timeline
from tests.simulation.wire import Wire
from tests.store.place import write_now

N_SESSIONS = 4
GONE = Process("gone", is_dead=True)
MOST_ENGINE_DEATHS = 2  # under one server: a third would give samples up, by right
HEALING_SECONDS, HEALING_TICKS = 120.0, 60_000
FAULTS = (
    *("engine", "server", "both", "cut", "power"),
    *("engine amid", "server amid", "power amid"),
    *("full", "short", "io_error", "failed_sync", "unreadable", "shutdown", "jump"),
)


@dataclass(frozen=True)
class Template:
    """A data folder with a key and sessions, made once and copied for each world."""

    folder: Path
    key_id: str
    session_ids: tuple[str, ...]


def make_template(folder: Path) -> Template:
    """A new data folder, as a server leaves it that was stopped in order."""
    store = Store(folder, "os")
    key_id = write_now(store, keys.create, "test", ("admin",), 1.0).row.id
    session_ids = tuple(
        write_now(store, sessions.create, key_id, SessionNew(), 1.0, f"session-{number}")
        for number in range(N_SESSIONS)
    )
    for session_id in session_ids:
        row = RunRow(f"{session_id}:train:0", session_id, key_id, "fake", LoraSpec(8, 1), 1.0, 1.0, None, True)
        write_now(store, runs.create, row)
    store.close()
    return Template(folder, key_id, session_ids)


class World:
    """One seed's world, in a folder of its own."""

    def __init__(self, seed: int, template: Template, folder: Path) -> None:
        self.seed, self.template, self.data = seed, template, folder / "data"
        shutil.copytree(template.folder, self.data)
        self.chance = random.Random(seed)
        self.timeline = Timeline()
        self.clock = Clock(self.timeline)
        self.disk = Disk(self.data, random.Random(f"disk {seed}"))
        self.is_stormy = True
        self.n_ticks = 0
        self.course: list[str] = []  # what has happened, for whoever looks into a seed
        self.server: Server | None = None
        self.engine: EngineProcess | None = None
        chance = self.chance
        self.pace = Pace(
            layer_seconds=chance.choice((0.001, 0.02, 0.2)),
            token_seconds=chance.choice((0.001, 0.03)),
            snapshot_seconds=chance.choice((0.0, 0.1, 1.0, 1e9)),
            mixes=chance.random() < 0.5,
        )
        self.delays = chance.choice(((0.0,), (0.0, 0.0005, 0.01), (0.0, 0.001, 0.05, 0.4)))
        self.ledger = Ledger(mixes=self.pace.mixes, struck=self.disk.struck)
        self.trainers = [self._trainer(session_id) for session_id in template.session_ids[: chance.randint(1, 3)]]
        requests = sample_script(template.session_ids[-1], template.key_id, chance, chance.randint(0, 6))
        self.clients: list[Client] = [*self.trainers, SamplingClient(requests, self.ledger, chance)]

    def _trainer(self, session_id: str) -> TrainingClient:
        chance = self.chance
        # In the last two parts, which come after the storm and after the last power cut, the state itself is asked for.
        kinds = [*chance.choices(KINDS, k=chance.randint(3, 10)), "pass", "step", "save", "pass", "step", "save"]
        ops = script(f"{session_id}:train:0", chance.randrange(100), kinds, self.data)
        leaves = chance.randint(1, len(ops) - 6) if chance.random() < 0.15 and not self.pace.mixes else None
        return TrainingClient(
            key_id=self.template.key_id,
            session_id=session_id,
            ops=ops,
            ledger=self.ledger,
            chance=chance,
            n_allowed=len(ops) - 6,
            leaves_after=leaves,
        )

    def note(self, text: str) -> None:
        self.course.append(f"{self.timeline.now:9.4f} {self.n_ticks:6d} {text}")

    # the course of a world

    def run(self) -> list[str]:
        """Everything from the first start to the last look; gives the promises that were not kept."""
        logging.disable(logging.CRITICAL)
        try:
            with self.disk.under_the_system(), VFS.on(self.disk), contextlib.redirect_stderr(io.StringIO()):
                self._storm()
                self._heal(3)
                self._cut_power()
                self._heal(0)
                self._cut_power()
                self._look_at_the_end()
        finally:
            self._end()
            logging.disable(logging.NOTSET)
        self.ledger.problems.extend(f"in a layer of SQLite: {error!r}" for error in VFS.errors)
        VFS.errors.clear()
        return self.ledger.problems

    def _storm(self) -> None:
        self._start_server()
        self._start_engine()
        seconds = self.chance.uniform(1.0, 8.0)
        for _ in range(self.chance.randint(1, 7)):
            kind = self.chance.choice(FAULTS)
            self.timeline.at(self.chance.uniform(0.0, seconds), lambda kind=kind: self._strike(kind))
        while self.timeline.now < seconds and self._tick():
            pass

    def _heal(self, n_held: int) -> None:
        self.is_stormy = False
        self.disk.faults.clear()
        self.disk.is_full = False
        self.delays = (0.0, 0.0005)
        for trainer in self.trainers:
            trainer.n_allowed = len(trainer.ops) - n_held
        self.note("healed")
        until, most_ticks = self.timeline.now + HEALING_SECONDS, self.n_ticks + HEALING_TICKS
        while not all(client.is_done for client in self.clients):
            if self.ledger.problems:
                return
            if self.timeline.now > until or self.n_ticks > most_ticks or not self._tick():
                unended = [op.request_id for trainer in self.trainers for op in trainer._unended()]
                self.ledger.problem(f"not everything has ended after the healing: {unended}")
                return

    def _tick(self) -> bool:
        self.n_ticks += 1
        goes_on = bool(self.server and self.server.run()) or self.timeline.next_event()
        self._see_to_the_dead()
        return goes_on

    # who is there

    def _start_server(self) -> None:
        if self.server is not None:
            return
        server = None
        try:
            server = Server(self.timeline, self.disk, self.clock, self.chance, self.clients)
        except (LoreloopError, OSError, SQLAlchemyError, SyncFailed) as error:
            self.note(f"no start: {error}")
            if not self.is_stormy or (isinstance(error, BadRequest) and not self.disk.struck):
                self.ledger.problem(f"the server refuses to start: {error}")
        if server is None or not server.is_alive or self.disk.image is not None:
            self._clear_away(server)
            return
        self.server = server
        self.note("server")

    def _clear_away(self, server: Server | None) -> None:
        """A start that has failed."""
        if server is not None:
            server.bury()
        before, self.disk.running = self.disk.running, GONE
        gc.collect()  # connections that nobody has closed
        self.disk.running = before
        self.timeline.after(self.chance.uniform(0.2, 1.0), self._start_server)

    def _start_engine(self) -> None:
        if self.engine is not None and not self.engine.is_over:
            return
        if self.server is None or not self.server.dispatcher:
            self.timeline.after(0.1, self._start_engine)
            return
        self.engine = EngineProcess(self.timeline, self.disk, self.pace, self.ledger.group_of, self._engine_ended)
        wire = Wire(self.timeline, self.server.loop, self.engine.process, self.chance, self._delay_seconds)
        self.server.accept(wire)
        self.engine.connect(wire)
        self.note("engine")

    def _delay_seconds(self) -> float:
        return self.chance.choice(self.delays) * self.chance.random()

    def _engine_ended(self, engine: EngineProcess, error: BaseException | None) -> None:
        self.note(f"engine ended: {error!r}")
        if engine.n_executed_twice():
            self.ledger.problem(f"an engine has executed an operation twice: {engine.engine.executed}")
        if not isinstance(error, Killed | SyncFailed | OSError | LoreloopError | None):
            self.ledger.problem(f"an engine has ended with {error!r}")
        if engine.wire:
            engine.wire.engine_ended(lossy=error is not None and self.chance.random() < 0.5)
        if isinstance(error, SyncFailed) and self.server:
            self.server.process.is_dead = True  # the supervisor ends the server
        self.timeline.after(self.chance.uniform(0.05, 1.0), self._start_engine)

    def _see_to_the_dead(self) -> None:
        server = self.server
        if server:
            self._look_for_bugs(server)
        if self.disk.image is not None:
            if self.engine:
                self.engine.process.kill()
            if server:
                server.bury()
            self.disk.put_image()
            self.note("power is back")
        elif server and not server.is_alive:
            server.bury()
            self.note("server ended")
        else:
            return
        self.server = None
        self.timeline.after(self.chance.uniform(0.1, 1.0), self._start_server)

    def _look_for_bugs(self, server: Server) -> None:
        for context in server.loop.errors:
            self.ledger.problem(f"an error that nobody handles: {context.get('exception')!r} {context}")
        server.loop.errors.clear()

    # what goes wrong

    def _may_lose_engine(self) -> bool:
        server = self.server
        return server is None or not server.dispatcher or server.n_engine_deaths < MOST_ENGINE_DEATHS

    def _strike(self, kind: str) -> None:
        if not self.is_stormy or (kind in ("engine", "cut", "engine amid") and not self._may_lose_engine()):
            return
        self.note(kind)
        strikes: dict[str, Callable[[], None]] = {
            "engine": self._kill_engine,
            "server": self._kill_server,
            "both": lambda: (self._kill_engine(), self._kill_server()),  # type: ignore[dict-item, func-returns-value]
            "cut": lambda: self.engine.wire.cut() if self.engine and self.engine.wire else None,
            "power": self.disk.cut_power,
            "shutdown": lambda: self.engine.shut_down() if self.engine else None,
            "jump": self._jump,
        }
        if kind in strikes:
            strikes[kind]()
        else:
            self._arm(kind)

    def _arm(self, kind: str) -> None:
        """Has a later access of the disk go wrong."""
        number = self.chance.randint(1, 40)
        match kind:
            case "engine amid":
                of = self.engine.process if self.engine else None
                self.disk.faults.append(Fault("kill", self.chance.randint(1, 5), of))
            case "server amid":
                self.disk.faults.append(Fault("kill", number, self.server.process if self.server else None))
            case "power amid":
                self.disk.faults.append(Fault("power", number))
            case "unreadable":
                self.disk.faults.append(Fault("unreadable", 1, self.engine.process if self.engine else None))
            case "full" | "short" | "io_error" | "failed_sync":
                self.disk.faults.append(Fault(kind, number if kind != "full" else 1))
        self.timeline.after(self.chance.uniform(0.1, 2.0), self._make_room)

    def _make_room(self) -> None:
        self.disk.is_full = False

    def _kill_engine(self) -> None:
        if self.engine:
            self.engine.process.kill()

    def _kill_server(self) -> None:
        if self.server:
            self.server.process.is_dead = True

    def _jump(self) -> None:
        self.clock.off_seconds += self.chance.choice((-3600.0, -5.0, 5.0, 600.0))

    def _cut_power(self) -> None:
        if not self.ledger.problems:
            self.note("power")
            self.disk.cut_power()
            self._see_to_the_dead()

    # the end

    def _look_at_the_end(self) -> None:
        for trainer in self.trainers:
            self.ledger.check_run(trainer.ops, left=trainer.leaves_after is not None)
        if self.ledger.problems:
            return
        store = Store(self.data, "power")
        for trainer in self.trainers:
            self._look_into(store, trainer)
        store.close()

    def _look_into(self, store: Store, trainer: TrainingClient) -> None:
        for op in trainer.ops:
            if (end := self.ledger.ends.get(op.request_id)) is None:
                continue
            try:
                outcome = store.read(journal.outcome, store.segments, op.request_id)
                if outcome is None or outcome.result != end:
                    self.ledger.problem(f"{op.request_id} ended as {end}, and after a power cut as {outcome}")
                if isinstance(op, SaveState) and isinstance(end, SavedResult):
                    effects, _ = trainer._effect(op)
                    checkpoints.get(store.reader, trainer.key_id, effects[0].row.path)
            except LoreloopError as error:
                self.ledger.problem(f"{op.request_id} ended as {end}, and after a power cut: {error.message}")

    def _end(self) -> None:
        if self.engine:
            self.engine.process.kill()
        if self.server:
            self.server.bury()
        self.disk.reach_again()
        self.disk.close()

"""A disk that fails at the first, the second, the third … access, until a run is clean: a full disk, an I/O error, a
write that is cut short, a sync that fails, a kill, a power cut. Whatever was told to be done is there afterwards."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tests.simulation.sqlite_files", exc_type=ImportError)

from loreloop.engine.training.staging import staged
from loreloop.protocol.errors import LoreloopError
from loreloop.protocol.link import Batch, BatchDone, OpEnd
from loreloop.protocol.syncing import SyncFailed
from loreloop.protocol.training import StepResult
from loreloop.store import journal, replay
from loreloop.store.rows import Acceptance
from loreloop.store.store import Store
from tests.scheduler.ops import create, forward_backward
from tests.simulation.disk import Disk, Fault, Killed, Kind, Process
from tests.simulation.sqlite_files import VFS
from tests.simulation.timeline import SimulatedLoop, Timeline
from tests.simulation.world import Template, make_template

KINDS: tuple[Kind, ...] = ("full", "io_error", "short", "failed_sync", "kill", "power")
ENDING: tuple[Kind, ...] = ("failed_sync", "kill", "power")
RUN = "session-0:train:0"
OPS = (create(RUN), forward_backward(RUN, 1, n_tokens=2000))
DONE = StepResult({"seq:mean": 1.0})
MOST_ACCESSES = 1000


@dataclass
class Life:
    """A process with a store; `told` are the names of writes that were said to be done."""

    disk: Disk
    told: list[str] = field(default_factory=list)
    process: Process = field(default_factory=lambda: Process("server"))
    store: Store | None = None

    def work(self) -> None:
        """Opens the store and does everything, each write once more where it was refused."""
        before, self.disk.running = self.disk.running, self.process
        self.disk.new_process(self.process)
        try:
            self._open()
            for op in OPS:
                self._write(op.request_id, journal.append, op, Acceptance("fake", repr(op)))
            done = BatchDone(Batch(1, (OPS[0].request_id,)), (OpEnd(OPS[0].request_id, DONE),))
            self._write("batch", journal.record_batch, "fake", done, 1.0)
        except SyncFailed:
            self.process.is_dead = True
        finally:
            if self.store:
                self.store.close()
            self.disk.running = before

    def _open(self) -> None:
        for _ in range(2):
            try:
                self.store = Store(self.disk.root, "power", own_thread=False)
                return
            except (LoreloopError, OSError):
                self.disk.is_full = False
        raise AssertionError("the store does not open a second time")

    def _write(self, name: str, function: Callable[..., Any], *args: object) -> None:
        for _ in range(2):
            if self.process.is_dead or self.store is None:
                return
            store = self.store
            loop = SimulatedLoop(Timeline())
            task = loop.create_task(store.write(function, store.segments, *args))
            loop.run_ready()
            store.write_waiting()
            if self.process.is_dead:
                task.cancel()
                loop.run_ready()
                return
            loop.run_ready()
            if task.exception() is None:
                self.told.append(name)
                return
            assert isinstance(task.exception(), LoreloopError)
            self.disk.is_full = False
        raise AssertionError(f"{name} is refused a second time: {task.exception()}")


def look(disk: Disk, told: list[str]) -> None:
    """What was told to be done is there, and the store takes more."""
    store = Store(disk.root, "power")
    for name in told:
        if name == "batch":
            outcome = store.read(journal.outcome, store.segments, OPS[0].request_id)
            assert outcome is not None
            assert outcome.result == DONE
        else:
            assert store.read(journal.is_known, name), f"{name} was acknowledged and is not there"
    state = store.read(replay.replay_state, store.segments, "fake")
    assert not state.damaged
    assert {op.request_id for op in state.ops} >= set(told) - {"batch"}
    for op in OPS:
        store.write_and_wait(journal.append, store.segments, op, Acceptance("fake", repr(op)))
    assert len(store.read(replay.replay_state, store.segments, "fake").ops) == len(OPS)
    store.close()


def disks(template: Path, folder: Path, kind: Kind) -> Iterator[tuple[Disk, int]]:
    """A disk for each number, until one has not failed."""
    for number in count(1):
        assert number < MOST_ACCESSES
        root = folder / f"{number}"
        shutil.copytree(template, root)
        disk = Disk(root, random.Random(number))
        disk.faults.append(Fault(kind, number))
        yield disk, number
        disk.close()
        shutil.rmtree(root)
        if not disk.struck:
            return


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return make_template(tmp_path_factory.mktemp("template") / "data")


@pytest.mark.parametrize("kind", KINDS)
def test_whichever_access_of_the_store_fails_what_it_told_is_there(
    template: Template, tmp_path: Path, kind: Kind
) -> None:
    n_struck = 0
    for disk, _ in disks(template.folder, tmp_path, kind):
        with disk.under_the_system(), VFS.on(disk):
            life = Life(disk)
            life.work()
            n_struck += len(disk.struck)
            assert disk.struck or len(life.told) == len(OPS) + 1
            assert kind in ENDING or len(life.told) == len(OPS) + 1
            if disk.image is not None:
                disk.put_image()
            look(disk, life.told)
    assert n_struck >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_whichever_access_of_a_save_fails_the_folder_is_whole(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "template").mkdir()
    for disk, _ in disks(tmp_path / "template", tmp_path, kind):
        folder = disk.root / "checkpoints" / "run" / "weights" / "a"
        told: list[int] = []
        with disk.under_the_system():
            disk.running = Process("engine")
            try:
                for version in (1, 2, 3):
                    save(folder, version)
                    told.append(version)
            except (Killed, OSError, SyncFailed):
                pass
            disk.running = disk.outside
            disk.is_full = False
            disk.reach_again()
            if disk.image is not None:
                disk.put_image()
            found = {json.loads((folder / name).read_text()) for name in ("a.json", "b.json") if folder.exists()}
            assert len(found) <= 1, "two versions are mixed"
            assert {*told[-1:]} <= {*found} or max(found, default=0) > told[-1], f"{told} were saved, there is {found}"
            save(folder, 9)
            assert json.loads((folder / "b.json").read_text()) == 9


def save(folder: Path, version: int) -> None:
    with staged(folder) as staging:
        for name in ("a.json", "b.json"):
            (staging / name).write_text(json.dumps(version))

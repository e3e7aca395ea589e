"""A store in a folder of its own with two keys, and short ways to fill it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from loreloop.protocol.link import Batch, BatchDone, OpEnd
from loreloop.protocol.paths import CheckpointKind
from loreloop.protocol.training import Done, LoraSpec, OpResult, TrainOp
from loreloop.store import journal, keys, replay, runs, sessions
from loreloop.store.rows import Acceptance, AfterOp, CheckpointRow, Outcome, ReplayState, RunRow, SessionNew
from loreloop.store.store import Store

P = ParamSpec("P")
T = TypeVar("T")
BASE = "fake"


def write_now(store: Store, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a function in a transaction of its own, here and now."""
    with store.engine.begin() as connection:
        return function(connection, *args, **kwargs)


class Place:
    """`ann` and `bob` are ids of keys; session and runs are ann's. `now` stands still unless a test moves it."""

    def __init__(self, folder: Path, segment_bytes: int | None = None) -> None:
        self.folder, self.segment_bytes, self.now = folder, segment_bytes, 1000.0
        self.open()
        self.ann = self.write(keys.create, "ann", ("train",), self.now).row.id
        self.bob = self.write(keys.create, "bob", ("train",), self.now).row.id
        self.session = self.write(sessions.create, self.ann, SessionNew(), self.now)

    def read(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.store.read(function, *args, **kwargs)

    def write(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return write_now(self.store, function, *args, **kwargs)

    def open(self) -> None:
        self.store = Store(self.folder, "os")
        if self.segment_bytes is not None:
            self.store.segments.segment_bytes = self.segment_bytes

    def reopen(self) -> None:
        self.store.close()
        self.open()

    def run(self, number: int = 0) -> str:
        """A new run's id."""
        run_id = f"{self.session}:train:{number}"
        row = RunRow(run_id, self.session, self.ann, BASE, LoraSpec(8, 1), self.now + number, self.now, None, True)
        self.write(runs.create, row)
        return run_id

    def append(self, op: TrainOp, *after: AfterOp, body: str | None = None) -> bool:
        accepted = Acceptance(BASE, repr(op) if body is None else body, after, {"path": "p"} if after else {})
        return self.write(journal.append, self.store.segments, op, accepted)

    def execute(self, plan_no: int, *ops: TrainOp, result: OpResult = Done(), replayed: bool = False) -> None:  # noqa: B008
        """Records a batch of these operations, which all ended alike."""
        ends = tuple(OpEnd(op.request_id, result) for op in ops)
        done = BatchDone(Batch(plan_no, tuple(op.request_id for op in ops)), ends, replayed)
        self.write(journal.record_batch, self.store.segments, BASE, done, self.now)

    def outcome(self, request_id: str) -> Outcome | None:
        return self.read(journal.outcome, self.store.segments, request_id)

    def replay(self, base_model: str = BASE) -> ReplayState:
        return self.read(replay.replay_state, self.store.segments, base_model)

    def checkpoint(
        self, run_id: str, name: str, kind: CheckpointKind = CheckpointKind.TRAINING, expires: float | None = None
    ) -> CheckpointRow:
        """A row that is not in the store yet."""
        return CheckpointRow(run_id, kind, name, self.ann, f"/folder/{name}", self.now, 1, expires, {"epoch": 1})

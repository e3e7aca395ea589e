"""A scheduler's life without processes: a scripted inbox, and a journal in memory that hears what it sends.

A life can be cut short after any message it sends. The journal then gives the next life what the store would.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import cast

import msgspec

from loreloop.config import EngineConfig
from loreloop.engine.fake import FakeEngine
from loreloop.protocol.link import (
    Batch,
    BatchDone,
    FromEngine,
    ModelSnapshot,
    Restore,
    Restored,
    SampleEnd,
    SnapshotRecorded,
    Snapshotted,
    Submit,
    ToEngine,
)
from loreloop.protocol.sampling import SampleResult
from loreloop.protocol.training import Failure, OpResult, TrainOp
from loreloop.scheduler.loop import Scheduler
from tests.scheduler.words import WordMatcher

EMPTY = Restore((), (), 1)


class Killed(BaseException):
    """Not an `Exception`: nothing in the loop may survive it."""


class Script:
    """An inbox that gives groups of messages: the next group comes after the loop has gone round once, and the end
    of the link when the loop has nothing left to do."""

    def __init__(self, groups: Iterable[Iterable[ToEngine]]) -> None:
        self.groups = deque(deque(group) for group in groups)
        self.urgent: deque[ToEngine] = deque()

    def empty(self) -> bool:
        if self.urgent:
            return False
        if self.groups and not self.groups[0]:
            self.groups.popleft()
            return True
        return not self.groups

    def get(self) -> ToEngine | None:
        if self.urgent:
            return self.urgent.popleft()
        while self.groups and not self.groups[0]:
            self.groups.popleft()
        return self.groups[0].popleft() if self.groups else None


class Journal:
    """What the store remembers, with the invariants that it relies on."""

    def __init__(self) -> None:
        self.ops: dict[str, TrainOp] = {}
        self.results: dict[str, OpResult] = {}
        self.sampled: dict[str, SampleResult | Failure] = {}
        self.plans: dict[int, Batch] = {}
        self.executed: list[Batch] = []  # every batch ever recorded
        self.snapshots: dict[str, ModelSnapshot] = {}
        self.covered_plan_no = 0
        self.last_plan_no = 0
        self.heard: list[FromEngine] = []

    def accept(self, op: TrainOp) -> Submit:
        self.ops[op.request_id] = op
        return Submit(op)

    def hear(self, message: FromEngine) -> None:
        self.heard.append(message)
        match message:
            case BatchDone():
                self._record(message)
            case Snapshotted():
                assert message.plan_no >= self.covered_plan_no
                self.snapshots |= {snapshot.model_id: snapshot for snapshot in message.models}
                self.covered_plan_no = message.plan_no
                self.plans = {n: batch for n, batch in self.plans.items() if n > message.plan_no}
            case SampleEnd(request_id, result):
                assert request_id not in self.sampled, f"{request_id} ended twice"
                self.sampled[request_id] = result

    def _record(self, done: BatchDone) -> None:
        assert [end.request_id for end in done.ends] == list(done.batch.request_ids)
        if done.replayed:
            assert set(done.batch.request_ids) <= set(self.plans[done.batch.plan_no].request_ids)
        else:
            assert done.batch.plan_no not in {batch.plan_no for batch in self.executed}, "a plan number came twice"
            assert done.batch.plan_no > self.covered_plan_no, "a snapshot claimed a batch that was not executed"
            self.plans[done.batch.plan_no] = done.batch
            self.executed.append(done.batch)
            self.last_plan_no = max(self.last_plan_no, done.batch.plan_no)
        for end in done.ends:
            known = self.results.setdefault(end.request_id, end.result)
            assert known == end.result, f"replay gave {end.request_id} another result"
            assert done.replayed or known is end.result, f"{end.request_id} ended twice"

    def replay(self) -> list[ToEngine]:
        """What a new engine is told: all that no snapshot covers."""
        unfinished = {request_id for request_id in self.ops if request_id not in self.results}
        needed = unfinished | {request_id for batch in self.plans.values() for request_id in batch.request_ids}
        plans = tuple(self.plans[plan_no] for plan_no in sorted(self.plans))
        restore = Restore(tuple(self.snapshots.values()), plans, self.last_plan_no + 1)
        return [restore, *(Submit(self.ops[request_id]) for request_id in sorted(needed)), Restored()]


def live(
    engine: FakeEngine,
    groups: Iterable[Iterable[ToEngine]],
    folder: Path,
    *,
    journal: Journal | None = None,
    dies_after: int | None = None,
    **settings: object,
) -> Journal:
    """One life: from its first message until everything is done, or until it has sent `dies_after` messages."""
    journal = journal or Journal()
    script = Script(groups)
    n_sent = 0

    def send(message: FromEngine) -> None:
        nonlocal n_sent
        if n_sent == dies_after:
            raise Killed
        n_sent += 1
        journal.hear(message)
        if isinstance(message, Snapshotted):
            script.urgent.append(SnapshotRecorded(message.plan_no))

    config = msgspec.convert({"snapshot_seconds": 1e9, "decode_gap_ms": 1} | settings, EngineConfig)
    inbox = cast("SimpleQueue[ToEngine | None]", script)
    scheduler = Scheduler(engine, inbox, send, WordMatcher, config, folder)  # type: ignore[arg-type]
    with contextlib.suppress(Killed):
        scheduler.run()
    return journal

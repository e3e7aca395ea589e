"""Whatever happened before an engine died, the journal leads the next one to the same place.

The engine here is a plain one: a model's state is the list of operations that it executed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.protocol.errors import Gone, NotFound
from loreloop.protocol.link import Batch, BatchDone, ModelSnapshot, OpEnd, Snapshotted
from loreloop.protocol.training import Failure, OpResult, SkipSeq, StepResult, TrainOp
from loreloop.store import journal, runs
from loreloop.store.rows import ReplayState
from tests.scheduler.ops import create, skip, step
from tests.store.place import BASE, Place

N_RUNS = 3
OVER = Failure("user", "the session is over")


def end_of(op: TrainOp) -> OpEnd:
    return OpEnd(op.request_id, StepResult({"seq:mean": float(op.seq_id)}))


class Engine:
    """Executes every model's operations by sequence id; skipped places are passed over."""

    def __init__(self, files: dict[str, list[str]]) -> None:
        self.files = files
        self.states: dict[str, list[str]] = {}
        self.waiting: dict[str, list[TrainOp]] = {}
        self.next_seq: dict[str, int] = {}
        self.dirty: set[str] = set()
        self.next_plan_no = 1

    def restore(self, state: ReplayState) -> None:
        for found in state.snapshots:
            self.states[found.model_id] = list(self.files[found.file])
            self.next_seq[found.model_id] = found.next_seq_id
        for op in state.ops:
            self.submit(op)
        known = {op.request_id: op for op in state.ops}
        for batch in state.batches:
            for op in [known[request_id] for request_id in batch.request_ids if request_id in known]:
                self.execute(op)
        self.next_plan_no = state.next_plan_no

    def submit(self, op: TrainOp) -> None:
        self.waiting.setdefault(op.model_id, []).append(op)

    def execute(self, op: TrainOp) -> None:
        self.pass_skipped(op.model_id)
        assert self.waiting[op.model_id].pop(0) == op, "a batch ran out of order"
        assert op.seq_id == self.next_seq.get(op.model_id, 0)
        self.states.setdefault(op.model_id, []).append(op.request_id)
        self.next_seq[op.model_id] = op.seq_id + 1
        self.dirty.add(op.model_id)
        self.pass_skipped(op.model_id)

    def pass_skipped(self, model_id: str) -> None:
        queue = self.waiting.get(model_id, [])
        while queue and isinstance(queue[0], SkipSeq):
            self.next_seq[model_id] = queue.pop(0).seq_id + 1

    def batch(self, n_models: int) -> BatchDone | None:
        """One operation of each of the first models that have some."""
        for model_id in self.waiting:
            self.pass_skipped(model_id)
        ops = [queue[0] for queue in self.waiting.values() if queue][:n_models]
        if not ops:
            return None
        for op in ops:
            self.execute(op)
        self.next_plan_no += 1
        return BatchDone(Batch(self.next_plan_no - 1, tuple(op.request_id for op in ops)), tuple(map(end_of, ops)))

    def snapshot(self) -> Snapshotted:
        plan_no = self.next_plan_no - 1
        models = []
        for model_id in sorted(self.dirty):
            file = f"{model_id}.{plan_no}.{len(self.files)}"
            self.files[file] = list(self.states[model_id])
            models.append(ModelSnapshot(model_id, plan_no, self.next_seq[model_id], file))
        self.dirty.clear()
        return Snapshotted(plan_no, tuple(models))


class History:
    """A store, the engine of the moment, and what should be true."""

    def __init__(self, folder: Path) -> None:
        self.place = Place(folder, segment_bytes=400)
        self.engine = Engine({})
        self.live = [self.place.run(number) for number in range(N_RUNS)]
        self.appended: dict[str, list[TrainOp]] = {run: [] for run in self.live}
        self.results: dict[str, OpResult | type[Exception]] = {}

    def append(self, number: int, skipped: bool) -> None:
        run = f"{self.place.session}:train:{number}"
        if run in self.live:
            seq = len(self.appended[run])
            op = create(run) if seq == 0 else skip(run, seq) if skipped else step(run, seq)
            assert self.place.append(op)
            self.appended[run].append(op)
            self.engine.submit(op)

    def batch(self, n_models: int) -> None:
        if (done := self.engine.batch(n_models)) is not None:
            self.place.write(journal.record_batch, self.place.store.segments, BASE, done, self.place.now)
            self.results |= {end.request_id: end.result for end in done.ends}

    def snapshot(self) -> None:
        self.place.write(journal.record_snapshot, BASE, self.engine.snapshot())

    def forget(self, number: int) -> None:
        run = f"{self.place.session}:train:{number}"
        if run in self.live:
            self.live.remove(run)
            self.place.write(runs.set_dead, run)
            self.place.write(journal.forget_model, self.place.store.segments, run, OVER, self.place.now)
            for op in self.engine.waiting.pop(run, []):
                self.results[op.request_id] = OVER
            self.engine.dirty.discard(run)

    def expire(self) -> None:
        self.place.now += 1
        self.place.write(journal.expire_results, self.place.now)
        for request_id in self.results:
            ended = request_id.rpartition(":")[0] not in self.live
            self.results[request_id] = NotFound if ended else Gone

    def die(self) -> None:
        """Server and engine end; new ones begin with what the store holds."""
        self.place.write(journal.sweep_segments, self.place.store.segments)
        self.place.reopen()
        before, self.engine = self.engine, Engine(self.engine.files)
        self.engine.restore(self.place.replay())
        for run in self.live:
            assert self.engine.states.get(run, []) == before.states.get(run, [])
            left, left_before = self.engine.waiting.get(run, []), before.waiting.get(run, [])
            assert [op for op in left if not isinstance(op, SkipSeq)] == [
                op for op in left_before if not isinstance(op, SkipSeq)
            ]
        assert not self.engine.waiting.keys() - set(self.live)

    def check_results(self) -> None:
        for op in (op for ops in self.appended.values() for op in ops if not isinstance(op, SkipSeq)):
            expected = self.results.get(op.request_id)
            if isinstance(expected, type):
                with pytest.raises(expected):
                    self.place.outcome(op.request_id)
            else:
                outcome = self.place.outcome(op.request_id)
                assert (outcome and outcome.result) == expected


APPEND = st.tuples(st.just("append"), st.integers(0, N_RUNS - 1), st.sampled_from([False, False, False, True]))
BATCH = st.tuples(st.just("batch"), st.integers(1, N_RUNS))
FORGET = st.tuples(st.just("forget"), st.integers(0, N_RUNS - 1))
OTHERS = st.tuples(st.sampled_from(["snapshot", "die", "expire"]))
EVENTS = st.lists(st.one_of(APPEND, APPEND, BATCH, BATCH, OTHERS, FORGET), min_size=5, max_size=40)


@settings(max_examples=15, deadline=None)
@given(EVENTS)
def test_after_any_history_an_engine_is_where_the_last_one_was(events: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        history = History(Path(name))
        for verb, *arguments in [*events, ("die",)]:
            getattr(history, str(verb))(*arguments)
        history.check_results()
        history.place.store.close()

"""The training half of the loop: operations wait for their place in the order, and are executed in batches.

In: operations of the journal, and after a restart the batches to execute again. Out: `BatchStarted` and `BatchDone`
for each, `Snapshotted` when enough work has piled up, and `ModelLost` for a snapshot that cannot be restored. It does
not know how a pass is computed, nor what a journal is made of.

A batch is a number (`plan_no`) and its operations in order. A snapshot lies between two batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loreloop.config import EngineConfig
from loreloop.engine.contract import Engine, Pause, no_pause
from loreloop.protocol.errors import ServerError
from loreloop.protocol.link import (
    Batch,
    BatchDone,
    BatchStarted,
    FromEngine,
    ModelLost,
    ModelSnapshot,
    OpEnd,
    Restore,
    Snapshotted,
)
from loreloop.protocol.training import (
    CreateModel,
    Done,
    Failure,
    ForwardBackward,
    LoadState,
    OpResult,
    OptimStep,
    SaveExternal,
    SaveSampler,
    SaveState,
    TrainOp,
    length_of,
)
from loreloop.scheduler.error_boundary import ErrorBoundary
from loreloop.scheduler.sampler_kl import sampler_kl
from loreloop.scheduler.training_queue import TrainingQueue

BATCH_MICRO_BATCHES = 16  # a larger batch saves nothing and holds its first results back


@dataclass(frozen=True)
class _Plan:
    """A batch, and whether it is executed once more."""

    plan_no: int
    ops: tuple[TrainOp, ...]
    replayed: bool


class Training:
    """Nothing is executed before `go`: until then the order is being filled."""

    def __init__(
        self,
        engine: Engine,
        send: Callable[[FromEngine], None],
        within_boundary: ErrorBoundary,
        config: EngineConfig,
        snapshot_folder: Path,
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._send, self._within_boundary = engine, send, within_boundary
        self._clock = clock
        self._snapshot_seconds = config.snapshot_seconds
        self._queue = TrainingQueue(
            share=not config.deterministic,
            max_models=config.resident_models,
            batch_tokens=BATCH_MICRO_BATCHES * config.train_tokens,
        )
        self._going = False
        self._lost: set[str] = set()  # models of whose operations nothing is executed; who hears `ModelLost` ends them
        self._replay: deque[Batch] = deque()
        self._to_drop: deque[str] = deque()
        self._last_plan_no, self._next_plan_no = 0, 1
        self._snapshots = _Snapshots(engine, within_boundary, snapshot_folder)
        self._unsnapshotted_seconds, self._paused_seconds = 0.0, 0.0
        self._snapshotting = False

    @property
    def snapshotting(self) -> bool:
        """Whether a snapshot is being written: every batch before it has its results already."""
        return self._snapshotting

    @property
    def going(self) -> bool:
        """Whether `go` was called: all that is to be replayed has arrived."""
        return self._going

    @property
    def busy(self) -> bool:
        """Whether `advance` would do anything; while not, the loop may sleep."""
        waiting = bool(self._replay or self._to_drop) or self._queue.ready()
        return self._going and waiting

    @property
    def waiting(self) -> int:
        """How many operations have arrived and not run."""
        return self._queue.waiting

    def restore(self, message: Restore) -> None:
        """Loads the snapshots and notes the batches to replay. A model with a damaged snapshot is reported as lost,
        and nothing of it runs any more."""
        for snapshot in message.snapshots:
            if failure := self._snapshots.restore(snapshot):
                self._lost.add(snapshot.model_id)
                self._send(ModelLost(snapshot.model_id, failure.message))
            else:
                self._queue.resume(snapshot.model_id, snapshot.next_seq_id)
        self._replay.extend(message.batches)
        self._next_plan_no = message.next_plan_no

    def go(self) -> None:
        """Everything to replay is here: from now on `advance` executes."""
        self._going = True

    def submit(self, op: TrainOp, *, alone: bool = False) -> None:
        """Takes an operation in; one of a lost model is let fall, and one of a dropped model ends as a failure at
        once. `alone` keeps it from sharing a batch."""
        if op.model_id in self._lost:
            return
        if not self._queue.add(op, alone=alone) and self._queue.is_dropped(op.model_id):
            self._finish(_Plan(self._new_plan_no(), (op,), False), [_dropped(op)])

    def drop(self, model_id: str) -> None:
        """Forgets a model before the next batch."""
        self._to_drop.append(model_id)

    def snapshot_recorded(self, plan_no: int) -> None:
        """Deletes snapshot files that no restart can need now that the store has recorded those of `plan_no`."""
        self._snapshots.delete_outdated(plan_no)

    def advance(self, pause: Pause) -> bool:
        """Executes the next batch from beginning to end; False if there is none. `pause` is called in between."""
        # Sent ahead of the work: if the engine dies within it, this tells which operations may be to blame.
        plan = self._next_plan() if self._going else None
        if plan is None:
            return False
        self._send(BatchStarted(tuple(op.request_id for op in plan.ops)))
        started, self._paused_seconds = self._clock(), 0.0
        self._finish(plan, self._results(plan, partial(self._pause, pause)))
        self._unsnapshotted_seconds += self._clock() - started - self._paused_seconds
        # Computing time is what a replay would cost again, so it decides when a snapshot is due, not the clock.
        if self._unsnapshotted_seconds >= self._snapshot_seconds:
            self._snapshot(pause)
        return True

    def close(self) -> None:
        """Leaves a snapshot of everything."""
        self._snapshot(no_pause)

    def _pause(self, pause: Pause) -> None:
        started = self._clock()
        pause()
        self._paused_seconds += self._clock() - started

    def _results(self, plan: _Plan, pause: Pause) -> Iterable[OpResult]:
        passes = [op for op in plan.ops if isinstance(op, ForwardBackward)]
        if not passes:
            return [self._execute(op, pause) for op in plan.ops]
        assert len(passes) == len(plan.ops), "only passes share a batch"
        results = self._within_boundary(partial(self._engine.train, passes, pause))
        # Passes of a batch are computed together, so one error ends them all.
        return [results] * len(plan.ops) if isinstance(results, Failure) else results

    def _next_plan(self) -> _Plan | None:
        # Journaled batches go first and as they were: another grouping would add up gradients in another order.
        while self._replay:
            batch = self._replay.popleft()
            if ops := self._queue.take(batch.request_ids):  # empty: its models are gone
                return _Plan(batch.plan_no, ops, True)
        # Between two batches only, so that no model vanishes while it is being computed.
        self._drop_models()
        ops = self._queue.next_batch()
        return _Plan(self._new_plan_no(), ops, False) if ops else None

    def _new_plan_no(self) -> int:
        self._next_plan_no += 1
        return self._next_plan_no - 1

    def _execute(self, op: TrainOp, pause: Pause) -> OpResult:
        result = self._within_boundary(partial(_apply, self._engine, op, pause))
        return Done() if result is None else result

    def _finish(self, plan: _Plan, results: Iterable[OpResult]) -> None:
        ends = tuple(
            OpEnd(op.request_id, result, _n_trained(op), sampler_kl(op, result))
            for op, result in zip(plan.ops, results, strict=True)
        )
        self._last_plan_no = max(self._last_plan_no, plan.plan_no)
        self._send(BatchDone(Batch(plan.plan_no, tuple(op.request_id for op in plan.ops)), ends, plan.replayed))

    def _drop_models(self) -> None:
        while self._to_drop:
            model_id = self._to_drop.popleft()
            waiting = self._queue.drop(model_id)
            self._within_boundary(partial(self._engine.drop_model, model_id))
            self._snapshots.forget(model_id, self._last_plan_no)
            if waiting:
                self._finish(_Plan(self._new_plan_no(), waiting, False), [_dropped(op) for op in waiting])

    def _snapshot(self, pause: Pause) -> None:
        self._unsnapshotted_seconds = 0.0
        moved = self._queue.moved()
        self._snapshotting = True
        models = self._snapshots.take(moved, self._last_plan_no, pause)
        self._snapshotting = False
        if models:
            self._queue.mark_snapshotted(moved)
            self._send(Snapshotted(self._last_plan_no, models))


class _Snapshots:
    """Which file holds the newest snapshot of each model, and which files are not needed any longer."""

    def __init__(self, engine: Engine, within_boundary: ErrorBoundary, folder: Path) -> None:
        self._engine, self._within_boundary, self._folder = engine, within_boundary, folder
        self._files: dict[str, ModelSnapshot] = {}
        self._outdated: deque[tuple[int, str]] = deque()  # a file, and the snapshot that replaces it

    def restore(self, snapshot: ModelSnapshot) -> Failure | None:
        """The failure of one that is damaged; its file is left as it lies. Any other error (a full disk) is raised: it
        may pass, so it ends this engine and not the model."""
        if not snapshot.file:
            return None
        try:
            self._engine.restore(snapshot)
        except ServerError as error:
            return Failure(error.category, error.message)
        self._files[snapshot.model_id] = snapshot
        return None

    def take(self, moved: dict[str, int], plan_no: int, pause: Pause) -> tuple[ModelSnapshot, ...]:
        """Snapshots of the models in `moved` (their next sequence ids). One whose state did not change keeps its file;
        one without any state (its creation failed) has none. Empty if the engine could not write."""
        self._folder.mkdir(parents=True, exist_ok=True)
        written = self._within_boundary(partial(self._engine.snapshot, str(self._folder), plan_no, pause))
        if isinstance(written, Failure):
            return ()
        for snapshot in written:
            # The old file must stay until the store has recorded the new one, or a crash in between would leave
            # neither.
            before = self._files.get(snapshot.model_id, snapshot).file
            if before != snapshot.file:
                self._outdated.append((plan_no, before))
            self._files[snapshot.model_id] = snapshot
        newest = {m: self._files.get(m, ModelSnapshot(m, plan_no, seq_id, "")) for m, seq_id in moved.items()}
        return tuple(ModelSnapshot(m, plan_no, moved[m], each.file, each.crc32) for m, each in newest.items())

    def forget(self, model_id: str, plan_no: int) -> None:
        if model_id in self._files:
            self._outdated.append((plan_no, self._files.pop(model_id).file))

    def delete_outdated(self, plan_no: int) -> None:
        while self._outdated and self._outdated[0][0] <= plan_no:
            Path(self._outdated.popleft()[1]).unlink(missing_ok=True)


def _apply(engine: Engine, op: TrainOp, pause: Pause) -> OpResult | None:
    match op:
        case CreateModel():
            engine.create_model(op, pause)
        case LoadState():
            engine.load_state(op, pause)
        case OptimStep():
            return engine.optim_step(op, pause)
        case SaveState():
            return engine.save_state(op, pause)
        case SaveSampler():
            return engine.save_sampler(op, pause)
        case SaveExternal():
            return engine.save_external(op, pause)
    return None


def _n_trained(op: TrainOp) -> int:
    """Positions that an operation learns from."""
    if isinstance(op, ForwardBackward) and not op.forward_only:
        return sum(length_of(datum.chunks) for datum in op.data)
    return 0


def _dropped(op: TrainOp) -> Failure:
    return Failure("user", f"{op.request_id} was not executed: the model {op.model_id} was unloaded with its session.")

"""What was promised to clients, and what came of it: every acknowledged operation is executed once, in its order, and
ends once.

What an operation should have given is worked out by an engine that nothing disturbs. Since each result depends on all
operations before it, one that was left out, repeated, or run out of order shows in what comes after it. Pure, but for
the saved files that it reads.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from loreloop.engine.fake import FakeEngine, Model, drawn_token
from loreloop.protocol.sampling import SampleOp, SampleResult
from loreloop.protocol.token_ids import unpack_ids
from loreloop.protocol.training import (
    CreateModel,
    Done,
    Failure,
    ForwardBackward,
    LoadState,
    OpResult,
    OptimStep,
    PassResult,
    SavedResult,
    SaveState,
    SkipSeq,
    TrainOp,
)

OVER = ("session of this request has ended", "was unloaded with its session")
DISK = ("The disk of the data folder does not take this", "Input/output error", "No space left")


class Ledger:
    """`problems` are the promises that were not kept, in words. `struck` are the faults of the disk that have happened:
    without any, nothing may be laid to it."""

    def __init__(self, *, mixes: bool, struck: Sequence[str] = ()) -> None:
        self.mixes, self.struck = mixes, struck
        self.acknowledged: set[str] = set()
        self.ends: dict[str, OpResult] = {}
        self.sampled: dict[str, SampleResult | Failure] = {}
        self.group_of: dict[str, int] = {}  # of each pass, how many shared its last batch
        self.problems: list[str] = []

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def acknowledge(self, op: TrainOp) -> None:
        """The client was told that the operation is taken."""
        self.acknowledged.add(op.request_id)

    def ended(self, op: TrainOp, result: OpResult) -> None:
        """The client was told how an operation ended; perhaps not for the first time."""
        if self.ends.setdefault(op.request_id, result) != result:
            self.problem(f"{op.request_id} ended as {self.ends[op.request_id]}, then as {result}")

    def sample_ended(self, op: SampleOp, result: SampleResult | Failure, *, may_fail: bool) -> None:
        """The same for a sample."""
        if op.request_id in self.sampled:
            self.problem(f"{op.request_id} ended twice")
        self.sampled[op.request_id] = result
        if isinstance(result, Failure):
            if not may_fail:
                self.problem(f"{op.request_id} failed: {result.message}")
        elif [unpack_ids(one.tokens).tolist() for one in result.sequences] != expected_tokens(op):
            self.problem(f"{op.request_id} has other tokens than it should")

    def check_run(self, ops: Sequence[TrainOp], *, left: bool) -> None:
        """Holds all that was said of a run against an undisturbed course of it. `left`: its session was ended before
        its time, and operations may have ended with it."""
        course = Course(self)
        for op in ops:
            if isinstance(op, SkipSeq):
                continue
            end = self.ends.get(op.request_id)
            if left and (end is None or _is_over(end)):
                self._check_rest(ops[ops.index(op) :])
                return
            if end is None:
                self.problem(f"{op.request_id} was never told to have ended")
                return
            course.go_on(op, end)

    def _check_rest(self, ops: Sequence[TrainOp]) -> None:
        for op in ops:
            end = self.ends.get(op.request_id)
            if end is None and op.request_id in self.acknowledged and not isinstance(op, SkipSeq):
                self.problem(f"{op.request_id} was acknowledged and has no end")
            if end is not None and not _is_over(end):
                self.problem(f"{op.request_id} ended as {end}, though one before it ended with its session")


class Course(FakeEngine):
    """An undisturbed run, beside which results are held."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(mixes=ledger.mixes)
        self.ledger = ledger
        self.saved: dict[str, Model] = {}
        self.unsaved: set[str] = set()  # of which nobody was told that they are there

    def go_on(self, op: TrainOp, end: OpResult) -> None:
        """Executes the next operation and compares its end."""
        match op:
            case CreateModel():
                self.create_model(op)
                self._compare(op, end, Done())
            case ForwardBackward():
                self._compare(op, end, self._pass(op, self.ledger.group_of.get(op.request_id, 1)))
            case OptimStep():
                self._compare(op, end, self.optim_step(op))
            case SaveState():
                self.saved[op.folder] = copy.copy(self.models[op.model_id])
                if self._is_disk_trouble(end):
                    self.unsaved.add(op.folder)
                else:
                    self._compare_saved(op, end)
            case LoadState():
                if isinstance(end, Done):
                    self.models[op.model_id] = copy.copy(self.saved[op.folder])
                elif not self._is_disk_trouble(end) and not (_is_missing(end) and op.folder in self.unsaved):
                    self.ledger.problem(f"{op.request_id} ended as {end}")

    def _is_disk_trouble(self, end: OpResult) -> bool:
        return bool(self.ledger.struck) and isinstance(end, Failure) and any(part in end.message for part in DISK)

    def _compare(self, op: TrainOp, end: OpResult, expected: OpResult) -> None:
        if isinstance(end, Failure) and isinstance(expected, Failure):
            return
        if end != expected:
            self.ledger.problem(f"{op.request_id} ended as {_short(end)}, and should have as {_short(expected)}")

    def _compare_saved(self, op: SaveState, end: OpResult) -> None:
        text = json.dumps(asdict(self.saved[op.folder]))
        self._compare(op, end, SavedResult(len(text)))
        file = Path(op.folder, "state.json")
        if not file.exists():
            self.ledger.problem(f"{op.request_id} was saved, and its files are gone")
        elif file.read_text() != text:
            self.ledger.problem(f"{op.request_id} has saved {file.read_text()!r}, and should have {text!r}")


def expected_tokens(op: SampleOp) -> list[list[int]]:
    """What the fake engine draws."""
    return [
        [drawn_token(op, index, position) for position in range(op.params.max_tokens)]
        for index in range(op.num_samples)
    ]


def _is_over(end: OpResult) -> bool:
    return isinstance(end, Failure) and any(part in end.message for part in OVER)


def _is_missing(end: OpResult) -> bool:
    return isinstance(end, Failure) and "No such file" in end.message


def _short(end: OpResult) -> str:
    return f"{end.metrics}" if isinstance(end, PassResult) else f"{end}"

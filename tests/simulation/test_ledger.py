"""The ledger finds what was promised and not kept: whatever it lets pass, no simulated world would show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from loreloop.engine.fake import FakeEngine
from loreloop.protocol.training import (
    Done,
    Failure,
    ForwardBackward,
    LoadState,
    OpResult,
    OptimStep,
    SaveState,
    StepResult,
    TrainOp,
)
from tests.scheduler.ops import create, forward_backward, rid, save, step
from tests.simulation.ledger import Ledger

NO_FILE = Failure("server", "The engine failed: FileNotFoundError: [Errno 2] No such file or directory.")
NO_DISK = Failure("server", "The disk of the data folder does not take this: Input/output error.", passing=True)


def script(folder: Path) -> list[TrainOp]:
    saved = save("m", 3, folder)
    load = LoadState("m", 5, rid("m", 5), saved.folder, True)
    return [create("m"), forward_backward("m", 1), step("m", 2), saved, step("m", 4), load, step("m", 6)]


def lived(ops: Sequence[TrainOp]) -> dict[str, OpResult]:
    """What an engine gives that nothing disturbs."""
    engine, ends = FakeEngine(), dict[str, OpResult]()
    for op in ops:
        match op:
            case ForwardBackward():
                (ends[op.request_id],) = engine.train([op], lambda: None)
            case OptimStep():
                ends[op.request_id] = engine.optim_step(op)
            case SaveState():
                ends[op.request_id] = engine.save_state(op)
            case LoadState():
                engine.load_state(op)
                ends[op.request_id] = Done()
            case _:
                engine.create_model(op)  # type: ignore[arg-type]
                ends[op.request_id] = Done()
    return ends


def problems(ops: Sequence[TrainOp], ends: dict[str, OpResult], *struck: str) -> list[str]:
    ledger = Ledger(mixes=False, struck=struck)
    for op in ops:
        ledger.acknowledge(op)
        if op.request_id in ends:
            ledger.ended(op, ends[op.request_id])
    ledger.check_run(ops, left=False)
    return ledger.problems


def test_what_was_kept_is_no_problem(tmp_path: Path) -> None:
    ops = script(tmp_path)
    assert problems(ops, lived(ops)) == []


@pytest.mark.parametrize(
    ("seq", "end"),
    [
        (1, Failure("server", "The engine failed.")),
        (2, StepResult({"unclipped_grad_l2:mean": 1e9})),
        (3, NO_DISK),
        (5, NO_DISK),
        (5, NO_FILE),
    ],
)
def test_another_end_is_a_problem(tmp_path: Path, seq: int, end: OpResult) -> None:
    ops = script(tmp_path)
    assert problems(ops, lived(ops) | {rid("m", seq): end}) != []


def test_an_operation_without_an_end_is_a_problem(tmp_path: Path) -> None:
    ops = script(tmp_path)
    ends = lived(ops)
    del ends["m:4"]
    assert problems(ops, ends) != []


def test_a_saved_folder_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    ops = script(tmp_path)
    ends = lived(ops)
    (tmp_path / "m-3" / "state.json").unlink()
    assert problems(ops, ends) != []


def test_two_ends_are_a_problem() -> None:
    ledger = Ledger(mixes=False)
    for end in (Done(), NO_DISK):
        ledger.ended(create("m"), end)
    assert ledger.problems != []


def test_the_disk_may_be_blamed_where_it_has_failed(tmp_path: Path) -> None:
    """A save that it did not take, and the load of what is not there then."""
    ops = script(tmp_path)
    ends = lived([op for op in ops if op.request_id not in ("m:3", "m:5")]) | {"m:3": NO_DISK, "m:5": NO_FILE}
    assert problems(ops, ends, "full") == []

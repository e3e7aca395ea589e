"""Operations are written down once, results once, and replay is what an engine needs to be where the last one was."""

import pytest
from sqlalchemy import Connection, event

from loreloop.protocol.errors import BadRequest, Gone, NotFound
from loreloop.protocol.link import Batch, ModelSnapshot, Snapshotted
from loreloop.protocol.training import Done, Failure, OpResult, StepResult, TrainOp
from loreloop.store import journal, runs
from loreloop.store.rows import Acceptance, AddCheckpoint
from tests.scheduler.ops import create, forward_backward, skip, step
from tests.store.place import BASE, Place

OVER = Failure("user", "the session is over")


def result(place: Place, op: TrainOp) -> OpResult | None:
    outcome = place.outcome(op.request_id)
    return outcome.result if outcome else None


def snapshot(place: Place, plan_no: int, **next_seq_ids: int) -> None:
    """Of runs given by number (r0=…), every one in its file."""
    models = tuple(
        ModelSnapshot(f"{place.session}:train:{name[1:]}", plan_no, seq_id, f"/{name}.{plan_no}")
        for name, seq_id in next_seq_ids.items()
    )
    place.write(journal.record_snapshot, BASE, Snapshotted(plan_no, models))


def forget(place: Place, run_id: str) -> list[str]:
    place.write(runs.set_dead, run_id)
    return place.write(journal.forget_model, place.store.segments, run_id, OVER, place.now)


def test_an_operation_comes_back_as_it_was_accepted(place: Place) -> None:
    ops: list[TrainOp] = [
        create(place.run()),
        forward_backward(place.run(), 1),
        step(place.run(), 2),
        skip(place.run(), 3),
    ]
    assert [place.append(op) for op in ops] == [True] * 4
    place.reopen()
    assert place.replay().ops == tuple(ops)


def test_operations_come_in_the_order_of_their_models(place: Place) -> None:
    first, second = place.run(0), place.run(1)
    for op in (step(second, 2), step(first, 10), create(second), step(first, 9)):
        place.append(op)
    found = [(op.model_id, op.seq_id) for op in place.replay().ops]
    assert found == [(first, 9), (first, 10), (second, 0), (second, 2)]


def test_the_same_operation_again_is_known(place: Place) -> None:
    op = step(place.run(), 1)
    assert not place.read(journal.is_known, op.request_id)
    assert place.append(op)
    assert not place.append(op)
    assert place.read(journal.is_known, op.request_id)
    assert place.replay().ops == (op,)


def test_another_body_in_its_place_is_refused(place: Place) -> None:
    op = step(place.run(), 1)
    place.append(op, body="one")
    with pytest.raises(BadRequest, match="used before with another body"):
        place.append(op, body="two")
    assert not place.append(op, body="one")


def test_an_ended_or_unknown_run_takes_no_operations_but_knows_its_old_ones(place: Place) -> None:
    op = step(place.run(), 1)
    place.append(op)
    forget(place, place.run())
    with pytest.raises(BadRequest, match="has ended"):
        place.append(step(place.run(), 2))
    with pytest.raises(BadRequest):
        place.append(step("nobody:train:0", 1))
    assert not place.append(op)


def test_a_result_is_there_once_it_is_recorded_and_stays_as_it_was(place: Place) -> None:
    op = step(place.run(), 1)
    place.append(op)
    assert result(place, op) is None
    place.execute(1, op, result=StepResult({"lr:mean": 1.0}))
    place.execute(1, op, result=StepResult({"lr:mean": 2.0}), replayed=True)
    place.reopen()
    assert result(place, op) == StepResult({"lr:mean": 1.0})


def test_a_result_nobody_fetched_in_time_is_gone(place: Place) -> None:
    ops = [step(place.run(), number) for number in (1, 2, 3)]
    for op in ops:
        place.append(op)
    place.execute(1, ops[0])
    place.now += 10
    place.execute(2, ops[1])
    place.write(journal.expire_results, place.now)
    with pytest.raises(Gone):
        place.outcome(ops[0].request_id)
    assert [result(place, op) for op in ops[1:]] == [Done(), None]
    assert not place.append(ops[0])


def test_what_has_failed_is_passed_over_by_a_replay(place: Place) -> None:
    first, second = step(place.run(), 1), step(place.run(), 2)
    for op in (first, second):
        place.append(op)
    place.execute(1, first, result=Failure("server", "no memory just now"))
    place.execute(2, second)
    place.reopen()
    assert place.replay().ops == (skip(place.run(), 1), second)
    assert result(place, first) == Failure("server", "no memory just now")


def test_a_step_over_broken_gradients_fails_again_in_a_replay(place: Place) -> None:
    """It let go of them; passed over, it would leave them to the next step, which had succeeded."""
    first, second = step(place.run(), 1), step(place.run(), 2)
    for op in (first, second):
        place.append(op)
    place.execute(1, first, result=Failure("user", "the gradients hold NaN"))
    place.execute(2, second)
    place.reopen()
    assert place.replay().ops == (first, second)


def test_an_unknown_request_is_not_found(place: Place) -> None:
    with pytest.raises(NotFound):
        place.outcome("nobody:1")


def test_a_promise_lasts_until_the_operation_ends(place: Place) -> None:
    row = place.checkpoint(place.run(), "one")
    op = step(row.run_id, 1)
    assert not place.read(journal.is_promised, {"path": "p"})
    place.append(op, AddCheckpoint(row, None))
    assert place.read(journal.is_promised, {"path": "p"})
    assert not place.read(journal.is_promised, {"path": "q"})
    place.execute(1, op)
    assert not place.read(journal.is_promised, {"path": "p"})


def test_batches_are_replayed_as_they_were_executed(place: Place) -> None:
    first, second = place.run(0), place.run(1)
    ops: list[TrainOp] = [create(first), create(second), forward_backward(first, 1), forward_backward(second, 1)]
    for op in ops:
        place.append(op)
    place.execute(1, ops[1])
    place.execute(2, ops[0])
    place.execute(3, ops[3], ops[2])
    state = place.replay()
    assert [batch.plan_no for batch in state.batches] == [1, 2, 3]
    assert state.batches[2] == Batch(3, (ops[3].request_id, ops[2].request_id))
    assert state.next_plan_no == 4
    assert len(state.ops) == 4


def test_a_snapshot_covers_what_came_before_it(place: Place) -> None:
    run = place.run()
    ops: list[TrainOp] = [create(run), step(run, 1), step(run, 2)]
    for op in ops:
        place.append(op)
    for number, op in enumerate(ops[:2], start=1):
        place.execute(number, op)
    snapshot(place, 1, r0=1)
    state = place.replay()
    assert (state.ops, [batch.plan_no for batch in state.batches]) == (tuple(ops[1:]), [2])
    snapshot(place, 2, r0=2)
    state = place.replay()
    assert (state.ops, state.batches, state.next_plan_no) == ((ops[2],), (), 3)
    assert state.snapshots == (ModelSnapshot(run, 2, 2, "/r0.2"),)
    assert [result(place, op) for op in ops] == [Done(), Done(), None]


def test_a_snapshot_of_one_model_leaves_the_others_older_one(place: Place) -> None:
    for number in range(2):
        place.append(create(place.run(number)))
        place.execute(number + 1, create(place.run(number)))
    snapshot(place, 2, r0=1, r1=1)
    place.append(step(place.run(1), 1))
    place.execute(3, step(place.run(1), 1))
    snapshot(place, 3, r1=2)
    assert {(found.file, found.plan_no) for found in place.replay().snapshots} == {("/r0.2", 2), ("/r1.3", 3)}


def test_a_snapshot_stands_behind_skipped_places(place: Place) -> None:
    run = place.run()
    for op in (create(run), skip(run, 1), step(run, 2), skip(run, 3)):
        place.append(op)
    place.execute(1, create(run))
    snapshot(place, 1, r0=2)
    assert [op.seq_id for op in place.replay().ops] == [2, 3]


def test_bases_do_not_share_a_journal(place: Place) -> None:
    place.append(create(place.run()))
    place.execute(1, create(place.run()))
    snapshot(place, 1, r0=1)
    state = place.replay("another base")
    assert (state.snapshots, state.batches, state.ops, state.next_plan_no) == ((), (), (), 1)


def test_what_a_forgotten_model_left_undone_ends_as_a_failure(place: Place) -> None:
    run, other = place.run(0), place.run(1)
    ops: list[TrainOp] = [create(run), step(run, 1), step(run, 2), create(other)]
    for op in ops:
        place.append(op)
    place.execute(1, ops[0])
    snapshot(place, 1, r0=1)
    assert forget(place, run) == ["/r0.1"]
    assert [result(place, op) for op in ops] == [Done(), OVER, OVER, None]
    state = place.replay()
    assert (state.snapshots, state.ops) == ((), (ops[3],))


def test_a_result_that_comes_after_the_failure_does_not_replace_it(place: Place) -> None:
    op = create(place.run())
    place.append(op)
    forget(place, place.run())
    place.execute(1, op)
    assert result(place, op) == OVER
    assert place.replay().ops == ()


def test_forgetting_twice_changes_nothing(place: Place) -> None:
    op = create(place.run())
    place.append(op)
    forget(place, place.run())
    assert forget(place, place.run()) == []
    assert result(place, op) == OVER


def test_pins_are_needed_until_a_snapshot_covers_their_operation(place: Place) -> None:
    run = place.run()
    for op in (create(run), step(run, 1)):
        place.append(op)
    place.execute(1, create(run))
    assert place.read(journal.pinned) == {f"{run}:0", f"{run}:1"}
    snapshot(place, 1, r0=1)
    assert place.read(journal.pinned) == {f"{run}:1"}
    forget(place, run)
    assert place.read(journal.pinned) == set()


def test_a_damaged_operation_is_told_and_harms_no_other_base(place: Place) -> None:
    place.append(create(place.run()))
    for path in (place.folder / "journal").glob("*.seg"):
        path.write_bytes(path.read_bytes()[:-1])
    (damaged,) = place.replay().damaged
    assert "damaged" in damaged.reason
    assert not damaged.executed
    assert place.replay("another base").damaged == ()


def test_a_snapshot_writes_only_what_is_new(place: Place) -> None:
    run = place.run()
    ops: list[TrainOp] = [create(run), *(step(run, number) for number in range(1, 20))]
    for op in ops:
        place.append(op)
    place.execute(1, *ops)
    snapshot(place, 1, r0=20)
    place.append(step(run, 20))
    place.execute(2, step(run, 20))
    assert rows_written(place, 2, r0=21) <= 6


def rows_written(place: Place, plan_no: int, **next_seq_ids: int) -> int:
    n_rows = 0

    def count(connection: Connection, cursor: object, *_: object) -> None:
        nonlocal n_rows
        n_rows += max(0, cursor.rowcount)  # type: ignore[attr-defined]

    event.listen(place.store.engine, "after_cursor_execute", count)
    snapshot(place, plan_no, **next_seq_ids)
    event.remove(place.store.engine, "after_cursor_execute", count)
    return n_rows


def test_nothing_of_an_ended_run_stays_for_ever(place: Place) -> None:
    run = place.run()
    for op in (create(run), skip(run, 1)):
        place.append(op)
    place.execute(1, create(run))
    snapshot(place, 1, r0=2)
    forget(place, run)
    place.write(journal.expire_results, place.now + 1)
    assert not place.read(journal.is_known, f"{run}:0")
    assert not place.read(journal.is_known, f"{run}:1")


def test_a_sweep_between_the_end_of_a_run_and_its_forgetting_takes_no_failure_away(place: Place) -> None:
    run = place.run()
    place.append(create(run))
    place.write(runs.set_dead, run)
    place.write(journal.expire_results, place.now)
    place.write(journal.forget_model, place.store.segments, run, OVER, place.now)
    assert result(place, create(run)) == OVER


def test_a_late_snapshot_of_a_forgotten_model_leaves_no_row(place: Place) -> None:
    run = place.run()
    place.append(create(run))
    place.execute(1, create(run))
    forget(place, run)
    snapshot(place, 1, r0=1)
    assert forget(place, run) == []


def test_an_accepted_operation_is_its_runs_last_request(place: Place) -> None:
    """In its own transaction, so that it costs no sync more; the same one again is nothing new."""
    run = place.run()
    for created in (2000.0, 3000.0):
        place.write(journal.append, place.store.segments, step(run, 1), Acceptance("fake", "body", created=created))
        assert place.read(runs.of_anyone, run).last_request == 2000.0

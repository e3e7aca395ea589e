"""TrainingQueue: per model by sequence id whatever arrives when; barriers; who may share a batch."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from loreloop.protocol.training import ForwardBackward, SkipSeq, TrainOp
from loreloop.scheduler.training_queue import TrainingQueue
from tests.scheduler.ops import create, forward_backward, skip, step

Kind = Callable[[str, int], TrainOp]
KINDS = st.sampled_from([forward_backward, forward_backward, step, skip])


def order(*, share: bool = True, max_models: int = 4, batch_tokens: int = 1000) -> TrainingQueue:
    return TrainingQueue(share=share, max_models=max_models, batch_tokens=batch_tokens)


def filled(*ops: TrainOp) -> TrainingQueue:
    filled = order()
    for op in ops:
        filled.add(op)
    return filled


def drained(order: TrainingQueue) -> list[tuple[str, ...]]:
    units = iter(order.next_batch, ())
    return [tuple(op.request_id for op in unit) for unit in units]


def test_operations_run_by_sequence_id_whatever_arrives_first() -> None:
    assert drained(filled(step("m", 2), forward_backward("m", 1), create("m"))) == [("m:0",), ("m:1",), ("m:2",)]


def test_a_gap_is_waited_for() -> None:
    waiting = filled(create("m"), step("m", 2))
    assert drained(waiting) == [("m:0",)]
    assert not waiting.ready()
    waiting.add(step("m", 1))
    assert drained(waiting) == [("m:1",), ("m:2",)]


def test_a_skipped_id_is_not_waited_for() -> None:
    assert drained(filled(create("m"), skip("m", 1), step("m", 2))) == [("m:0",), ("m:2",)]
    late = filled(create("m"), step("m", 2))
    assert drained(late) == [("m:0",)]
    late.add(skip("m", 1))
    assert drained(late) == [("m:2",)]


def test_a_skip_may_come_before_everything_else() -> None:
    assert drained(filled(skip("m", 1), skip("m", 2), create("m"), step("m", 3))) == [("m:0",), ("m:3",)]


def test_passes_up_to_a_barrier_share_a_batch() -> None:
    passes = [forward_backward("m", seq) for seq in (1, 2, 4)]
    units = drained(filled(create("m"), *passes, step("m", 3)))
    assert units == [("m:0",), ("m:1", "m:2"), ("m:3",), ("m:4",)]


def test_passes_of_different_models_share_a_batch() -> None:
    both = filled(create("a"), create("b"), forward_backward("a", 1), forward_backward("b", 1))
    assert drained(both)[-1] == ("a:1", "b:1")


def test_nothing_is_shared_when_deterministic() -> None:
    alone = order(share=False)
    for op in (create("a"), forward_backward("a", 1), forward_backward("a", 2)):
        alone.add(op)
    assert drained(alone) == [("a:0",), ("a:1",), ("a:2",)]


def test_a_batch_is_bounded_in_models_and_tokens() -> None:
    few = order(max_models=2)
    for model in "abc":
        few.resume(model, 1)
        few.add(forward_backward(model, 1))
    assert [len(unit) for unit in drained(few)] == [2, 1]
    small = order(batch_tokens=10)
    small.resume("a", 1)
    for seq, n_tokens in enumerate((6, 6, 100), start=1):
        small.add(forward_backward("a", seq, n_tokens))
    assert drained(small) == [("a:1",), ("a:2",), ("a:3",)]


def test_the_step_behind_a_pass_belongs_to_its_turn() -> None:
    crowded = order(max_models=1)
    for model in "ab":
        crowded.resume(model, 1)
        for op in (forward_backward(model, 1), step(model, 2), step(model, 3)):
            crowded.add(op)
    assert drained(crowded) == [("a:1",), ("a:2",), ("b:1",), ("b:2",), ("a:3",), ("b:3",)]


def test_a_repetition_is_refused() -> None:
    known = filled(create("m"), step("m", 1))
    assert not known.add(step("m", 1))
    assert drained(known) == [("m:0",), ("m:1",)]
    assert not known.add(step("m", 1))
    assert drained(known) == []


def test_an_operation_marked_alone_shares_its_next_batch_with_nobody() -> None:
    mixed = order()
    mixed.add(forward_backward("a", 0))
    mixed.add(forward_backward("b", 0), alone=True)
    mixed.add(forward_backward("b", 1))
    mixed.add(forward_backward("c", 0))
    assert drained(mixed) == [("a:0", "c:0"), ("b:0",), ("b:1",)]


def test_a_dropped_model_gives_back_what_waited_and_takes_nothing_more() -> None:
    dropped = filled(create("m"), step("m", 2), step("m", 1))
    assert [op.seq_id for op in dropped.drop("m")] == [0, 1, 2]
    assert not dropped.add(step("m", 3))
    assert dropped.is_dropped("m")
    assert drained(dropped) == []


def test_a_restored_model_goes_on_where_it_was() -> None:
    restored = order()
    restored.resume("m", 5)
    assert not restored.add(step("m", 4))
    restored.add(step("m", 5))
    assert drained(restored) == [("m:5",)]


def test_a_journaled_batch_is_taken_as_it_was() -> None:
    book = filled(create("a"), create("b"), *(forward_backward(m, seq) for m in "ab" for seq in (1, 2)))
    book.take(["a:0"])
    book.take(["b:0"])
    assert [op.request_id for op in book.take(["b:1", "a:1", "gone:7"])] == ["b:1", "a:1"]
    assert drained(book) == [("a:2", "b:2")]


def test_moved_tells_once_how_far_each_model_came() -> None:
    moving = filled(create("a"), step("a", 1), create("b"), step("c", 9))
    drained(moving)
    assert moving.moved() == {"a": 2, "b": 1}
    moving.mark_snapshotted(moving.moved())
    assert moving.moved() == {}
    moving.add(step("b", 1))
    drained(moving)
    assert moving.moved() == {"b": 2}


@given(st.data())
def test_any_arrival_gives_every_operation_once_and_in_order(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(KINDS, min_size=1, max_size=8))
    ops: list[TrainOp] = [create(m) for m in "ab"]
    ops += [kind(m, seq) for m in "ab" for seq, kind in enumerate(kinds, start=1)]
    book = order(share=data.draw(st.booleans()), max_models=data.draw(st.integers(1, 2)), batch_tokens=9)
    units: list[tuple[TrainOp, ...]] = []
    for op in data.draw(st.permutations(ops)):
        assert book.add(op)
        if data.draw(st.booleans()):
            units += iter(book.next_batch, ())
    units += iter(book.next_batch, ())
    for model in "ab":
        seqs = [op.seq_id for unit in units for op in unit if op.model_id == model]
        assert seqs == [op.seq_id for op in ops if op.model_id == model and not isinstance(op, SkipSeq)]
    assert all(isinstance(op, ForwardBackward) for unit in units if len(unit) > 1 for op in unit)


@given(st.permutations(range(1, 8)))
def test_no_batch_reaches_over_a_barrier(arrival: list[int]) -> None:
    kinds: dict[int, Kind] = {seq: step if seq % 3 == 0 else forward_backward for seq in range(1, 8)}
    book = filled(create("m"), *(kinds[seq]("m", seq) for seq in arrival))
    assert drained(book) == [("m:0",), ("m:1", "m:2"), ("m:3",), ("m:4", "m:5"), ("m:6",), ("m:7",)]


def test_a_model_that_sent_far_ahead_does_not_hold_up_a_late_comer() -> None:
    book = filled(create("a"), create("b"), *(step("a", seq) for seq in range(1, 10)))
    before = [book.next_batch() for _ in range(3)]  # both creations, and the first step of a
    book.add(step("b", 1))
    after = drained(book)
    assert len(before) == 3
    assert after.index(("b:1",)) <= 1

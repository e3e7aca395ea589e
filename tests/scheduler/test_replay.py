"""Killed at any message, an engine comes back to where it was: same results, each exactly once.

`Journal` checks in every life that a replayed result equals the one it holds, and that nothing ends twice.
"""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.engine.contract import HalfChanged, Pause, no_pause
from loreloop.engine.fake import FakeEngine
from loreloop.protocol.link import DropModel, Restored, Sample, Submit, ToEngine
from loreloop.protocol.training import Failure, LoadState, OptimStep, SkipSeq, StepResult, TrainOp
from tests.scheduler.harness import EMPTY, Journal, live
from tests.scheduler.ops import create, forward_backward, rid, sample, save, skip, step

START = (EMPTY, Restored())
MODELS = ("a", "b", "c")
KINDS = st.sampled_from(["pass", "pass", "step", "save", "load", "skip", "wrong"])


def operations(model: str, kinds: list[str], folder: Path) -> list[TrainOp]:
    """A run of one model. A load takes up what the run itself has saved, or fails."""
    ops: list[TrainOp] = [create(model, seed=ord(model))]
    for seq, kind in enumerate(kinds, start=1):
        match kind:
            case "pass":
                ops.append(forward_backward(model, seq))
            case "wrong":
                ops.append(forward_backward(model, seq, loss="unheard_of"))
            case "step":
                ops.append(step(model, seq))
            case "skip":
                ops.append(skip(model, seq))
            case "save":
                ops.append(save(model, seq, folder))
            case "load":
                ops.append(LoadState(model, seq, rid(model, seq), str(folder / f"{model}-{seq - 1}"), True))
    return ops


def lives(
    ops: list[TrainOp], folder: Path, kills: list[int], *, mixes: bool, **config: object
) -> tuple[Journal, FakeEngine]:
    """Engines one after another, the last of which is left in peace."""
    journal = Journal()
    arrivals: list[list[ToEngine]] = [[journal.accept(op)] for op in ops]
    groups: list[list[ToEngine]] = [list(START), *arrivals]
    engine = FakeEngine(mixes=mixes)
    for dies_after in (*kills, None):
        live(engine, groups, folder, journal=journal, dies_after=dies_after, **config)
        if dies_after is not None:
            engine, groups = FakeEngine(mixes=mixes), [journal.replay()]
    return journal, engine


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_kills_give_the_results_of_an_undisturbed_run(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(KINDS, min_size=1, max_size=7))
    kills = data.draw(st.lists(st.integers(0, 12), max_size=4))
    snapshot_seconds = data.draw(st.sampled_from([0.0, 1e9]))
    with tempfile.TemporaryDirectory() as name:
        ops = [op for model in MODELS[:2] for op in operations(model, kinds, Path(name))]
        arrival = data.draw(st.permutations(ops))
        calm, _ = lives(ops, Path(name), [], mixes=False)
        stormy, _ = lives(list(arrival), Path(name), kills, mixes=False, snapshot_seconds=snapshot_seconds)
    executed = {op.request_id for op in ops if not isinstance(op, SkipSeq)}
    assert stormy.results.keys() == calm.results.keys() == executed
    assert stormy.results == calm.results


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_replay_keeps_the_batches_as_they_were(data: st.DataObject) -> None:
    """With an engine that feels its batches, the final state is that of the journaled batches, executed once."""
    kinds = data.draw(st.lists(st.sampled_from(["pass", "step"]), min_size=1, max_size=6))
    kills = data.draw(st.lists(st.integers(1, 8), max_size=3))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ops = [op for model in MODELS for op in operations(model, kinds, folder)]
        journal, engine = lives(data.draw(st.permutations(ops)), folder, kills, mixes=True, snapshot_seconds=0)
        once = Journal()
        once.ops, once.plans = journal.ops, {batch.plan_no: batch for batch in journal.executed}
        once.executed, once.last_plan_no = list(journal.executed), journal.last_plan_no
        fresh = FakeEngine(mixes=True)
        live(fresh, [once.replay()], folder, journal=once)
    assert once.results == journal.results
    assert fresh.models == engine.models


def test_a_snapshot_shortens_the_replay(tmp_path: Path) -> None:
    ops = operations("a", ["pass", "step"] * 5, tmp_path)
    journal, _ = lives(ops, tmp_path, [], mixes=False, snapshot_seconds=0)
    assert journal.plans == {}
    again = FakeEngine()
    live(again, [journal.replay()], tmp_path, journal=journal)
    assert again.n_batches == 0
    assert again.models["a"].steps == 5


def test_a_model_whose_creation_failed_goes_on_failing_after_a_restart(tmp_path: Path) -> None:
    journal = Journal()
    first: list[ToEngine] = [*START, journal.accept(create("m", rank=65)), journal.accept(step("m", 1))]
    live(FakeEngine(), [first], tmp_path, journal=journal, snapshot_seconds=0)
    journal.accept(step("m", 2))
    live(FakeEngine(), [journal.replay()], tmp_path, journal=journal)
    assert isinstance(journal.results["m:2"], Failure)


def test_a_dropped_model_is_left_out_of_a_journaled_batch(tmp_path: Path) -> None:
    journal = Journal()
    ops = [journal.accept(op) for m in ("a", "b") for op in (create(m), forward_backward(m, 1))]
    live(FakeEngine(), [[*START, *ops]], tmp_path, journal=journal)
    for request_id in ("a:0", "a:1"):
        del journal.ops[request_id]
    messages = [m for m in kept(journal) if not (isinstance(m, Submit) and m.op.model_id == "a")]
    engine = FakeEngine()
    live(engine, [messages], tmp_path, journal=journal)
    assert list(engine.models) == ["b"]


def kept(journal: Journal) -> list[ToEngine]:
    """The replay of a journal from which some operations are gone."""
    gone = {r for batch in journal.plans.values() for r in batch.request_ids} - journal.ops.keys()
    journal.ops |= {request_id: create("a") for request_id in gone}
    return journal.replay()


def test_a_drop_during_the_replay_waits_for_its_end(tmp_path: Path) -> None:
    journal = Journal()
    ops = [journal.accept(op) for m in ("a", "b") for op in (create(m), forward_backward(m, 1), step(m, 2))]
    live(FakeEngine(), [[*START, *ops]], tmp_path, journal=journal)
    late = journal.accept(step("a", 4))
    live(FakeEngine(), [[*journal.replay(), DropModel("a"), late]], tmp_path, journal=journal, snapshot_seconds=0)
    assert isinstance(journal.results["a:4"], Failure)
    assert journal.snapshots["b"].next_seq_id == 3


@pytest.mark.parametrize("dies_after", range(8))
def test_samples_end_once_over_two_lives(tmp_path: Path, dies_after: int) -> None:
    """The dispatcher sends again what has not ended; the draws are the same."""
    ops = [sample(f"r{i}", n=2, max_tokens=i + 1) for i in range(4)]
    calm = live(FakeEngine(rooms=4), [START, [Sample(op) for op in ops]], tmp_path)
    journal = live(FakeEngine(rooms=4), [START, [Sample(op) for op in ops]], tmp_path, dies_after=dies_after)
    again = [Sample(op) for op in ops if op.request_id not in journal.sampled]
    live(FakeEngine(rooms=4), [[*journal.replay(), *again]], tmp_path, journal=journal)
    assert journal.sampled == calm.sampled


class Spoilt(FakeEngine):
    """Stops amid its second step."""

    def optim_step(self, op: OptimStep, pause: Pause = no_pause) -> StepResult:
        model = self.models[op.model_id]
        if model.steps == 1:
            model.weight += 100.0
            raise HalfChanged("a fault")
        return super().optim_step(op, pause)


def test_what_an_engine_has_half_changed_is_told_to_nobody_and_worked_out_anew(tmp_path: Path) -> None:
    ops = [create("a"), *(each("a", seq) for seq, each in enumerate((forward_backward, step) * 2, start=1))]
    calm = live(FakeEngine(), [[*START, *map(Submit, ops)]], tmp_path / "calm")
    journal = Journal()
    with pytest.raises(HalfChanged):
        live(Spoilt(), [[*START, *map(journal.accept, ops)]], tmp_path, journal=journal, snapshot_seconds=0)
    assert "a:4" not in journal.results
    live(FakeEngine(), [journal.replay()], tmp_path, journal=journal)
    assert journal.results == calm.results

"""The loop around a fake engine: every request ends exactly once, whatever goes wrong in the engine."""

import errno
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from loreloop.config import EngineConfig
from loreloop.engine.fake import FakeEngine, drawn_token
from loreloop.protocol.link import (
    BatchDone,
    CancelSample,
    DropModel,
    FromEngine,
    Meters,
    ModelLost,
    ModelSnapshot,
    Queues,
    Restore,
    Restored,
    Sample,
    Shutdown,
    Snapshotted,
    Submit,
    ToEngine,
    Tokens,
)
from loreloop.protocol.sampling import Revision, SampleResult
from loreloop.protocol.training import Done, Failure, PassResult, SavedResult, StepResult
from loreloop.scheduler.loop import Scheduler
from tests.scheduler.harness import EMPTY, Journal, live
from tests.scheduler.ops import create, forward_backward, rid, sample, save, skip, step
from tests.scheduler.words import WordMatcher

START = (EMPTY, Restored())


def submits(*ops: object) -> list[ToEngine]:
    return [Submit(op) for op in ops]  # type: ignore[arg-type]


def failure(journal: Journal, request_id: str) -> Failure:
    ended = journal.results.get(request_id) or journal.sampled[request_id]
    assert isinstance(ended, Failure)
    return ended


def test_a_run_trains_and_saves(tmp_path: Path) -> None:
    ops = submits(create("m"), forward_backward("m", 1), step("m", 2), save("m", 3, tmp_path))
    journal = live(FakeEngine(), [START, ops], tmp_path)
    kinds = [type(journal.results[rid("m", seq)]) for seq in range(4)]
    assert kinds == [Done, PassResult, StepResult, SavedResult]
    assert (tmp_path / "m-3" / "state.json").exists()


def test_nothing_is_executed_before_the_journal_is_complete(tmp_path: Path) -> None:
    ops = submits(create("m"), step("m", 1))
    assert live(FakeEngine(), [[EMPTY], ops], tmp_path).results == {}


class Metered(FakeEngine):
    """Says something new whenever it is asked."""

    n_asked = 0

    @property
    def meters(self) -> Meters:
        self.n_asked += 1
        return Meters(revision_hits=self.n_asked)


def test_meters_are_told_before_sleep_and_not_with_every_token(tmp_path: Path) -> None:
    engine = Metered()
    journal = live(engine, [START, [Sample(sample("a", max_tokens=200))]], tmp_path)
    told = [message for message in journal.heard if isinstance(message, Meters)]
    assert 1 <= len(told) == engine.n_asked <= 5
    assert isinstance(journal.heard[-1], Meters)


def test_out_of_order_arrivals_and_skipped_ids(tmp_path: Path) -> None:
    groups = [START, submits(step("m", 4)), submits(forward_backward("m", 2)), submits(skip("m", 1), create("m"))]
    journal = live(FakeEngine(), [*groups, submits(skip("m", 3))], tmp_path)
    assert [batch.request_ids for batch in journal.executed] == [("m:0",), ("m:2",), ("m:4",)]


def test_a_users_mistake_ends_its_own_operation_only(tmp_path: Path) -> None:
    ops = submits(create("m", rank=65), step("m", 1), create("n"), step("n", 1))
    journal = live(FakeEngine(), [START, ops], tmp_path)
    assert failure(journal, "m:0").category == "user"
    assert "must lie between 1 and 64" in failure(journal, "m:0").message
    assert "not live" in failure(journal, "m:1").message
    assert isinstance(journal.results["n:1"], StepResult)


def test_a_wrong_pass_leaves_the_others_of_its_batch_alone(tmp_path: Path) -> None:
    passes = submits(forward_backward("m", 1), forward_backward("m", 2, loss="unheard_of"), forward_backward("m", 3))
    journal = live(FakeEngine(), [START, submits(create("m")), passes], tmp_path)
    assert journal.executed[-1].request_ids == ("m:1", "m:2", "m:3")
    assert failure(journal, "m:2").category == "user"
    assert isinstance(journal.results["m:3"], PassResult)


def test_a_bug_in_a_batch_ends_its_passes_as_server_failures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    passes = submits(forward_backward("m", 1), forward_backward("m", 2, loss="broken"), step("m", 3))
    journal = live(FakeEngine(), [START, submits(create("m")), passes], tmp_path)
    assert [failure(journal, rid("m", seq)).category for seq in (1, 2)] == ["server", "server"]
    assert isinstance(journal.results["m:3"], StepResult)
    assert "ZeroDivisionError" in caplog.text


def test_an_unloaded_models_operations_end_as_failures(tmp_path: Path) -> None:
    groups = [START, submits(create("m"), step("m", 2), create("n")), [DropModel("m")], submits(step("m", 1))]
    journal = live(FakeEngine(), groups, tmp_path)
    assert "unloaded" in failure(journal, "m:2").message
    assert "unloaded" in failure(journal, "m:1").message
    assert journal.results["n:0"] == Done()


def test_an_unloaded_models_operation_may_come_while_a_batch_runs(tmp_path: Path) -> None:
    first = [*START, *submits(create("m"), create("n")), DropModel("m")]
    groups = [first, submits(forward_backward("n", 1)), submits(step("m", 1))]
    journal = live(FakeEngine(layer_seconds=0.002), groups, tmp_path)
    assert "unloaded" in failure(journal, "m:1").message
    assert isinstance(journal.results["n:1"], PassResult)


def test_samples_come_back_as_drawn(tmp_path: Path) -> None:
    op = sample("r", n=3, max_tokens=4)
    result = live(FakeEngine(), [START, [Sample(op)]], tmp_path).sampled["r"]
    assert isinstance(result, SampleResult)
    for index, sequence in enumerate(result.sequences):
        expected = [drawn_token(op, index, position) for position in range(4)]
        assert np.frombuffer(sequence.tokens, "<i4").tolist() == expected
        assert sequence.stop_reason == "length"


def test_a_stop_string_ends_the_sample_in_the_engine_too(tmp_path: Path) -> None:
    plain = sample("r", max_tokens=50)
    op = sample("r", max_tokens=50, stop=(str(drawn_token(plain, 0, 1)),))
    engine = FakeEngine()
    result = live(engine, [START, [Sample(op)]], tmp_path).sampled["r"]
    assert isinstance(result, SampleResult)
    assert len(result.sequences[0].tokens) == 8
    assert not engine.sampling


def test_a_stream_is_told_token_by_token_before_its_end(tmp_path: Path) -> None:
    journal = live(FakeEngine(), [START, [Sample(sample("r", n=2, stream=True))]], tmp_path)
    told = [message for message in journal.heard if isinstance(message, Tokens)]
    assert [len(message.tokens) for message in told] == [2, 2, 2]
    assert journal.heard.index(told[-1]) < len(journal.heard) - 1


def test_more_samples_than_rooms_all_end_and_owners_share_the_rooms(tmp_path: Path) -> None:
    ops = [sample(f"a{i}", "ann") for i in range(40)] + [sample(f"b{i}", "bob") for i in range(4)]
    engine = FakeEngine(rooms=4)
    journal = live(engine, [START, [Sample(op) for op in ops]], tmp_path)
    assert len(journal.sampled) == 44
    assert engine.most_running == 4
    assert {"b0", "b1", "b2", "b3"} <= set(engine.admitted[:8])


def test_samples_that_cannot_go_on_fail_alone(tmp_path: Path) -> None:
    ops = [sample("good"), sample("bad", seed=666), sample("huge", n=9)]
    missing = sample("missing")
    unread = type(missing)(**{f: getattr(missing, f) for f in missing.__struct_fields__} | {"revision": GONE})
    journal = live(FakeEngine(), [START, [Sample(op) for op in (*ops, unread)]], tmp_path)
    assert isinstance(journal.sampled["good"], SampleResult)
    assert failure(journal, "bad").category == "server"
    assert "no room" in failure(journal, "huge").message
    assert "cannot be read" in failure(journal, "missing").message


GONE = Revision("tinker://run/sampler_weights/gone", "/nowhere")


def test_cancelled_samples_end_waiting_and_running_ones(tmp_path: Path) -> None:
    ops = [sample("runs", n=8, max_tokens=1000), sample("waits", n=8), sample("lives", n=8)]
    cancels = [CancelSample("runs"), CancelSample("waits"), CancelSample("unknown")]
    journal = live(FakeEngine(), [START, [Sample(op) for op in ops], cancels], tmp_path)
    assert failure(journal, "runs").category == failure(journal, "waits").category == "user"
    assert isinstance(journal.sampled["lives"], SampleResult)


def test_an_engine_that_breaks_in_a_step_fails_what_ran_and_goes_on(tmp_path: Path) -> None:
    class Breaking(FakeEngine):
        def sample_step(self) -> list:  # type: ignore[type-arg]
            if "first" in self.drawn:
                raise RuntimeError("broken")
            return super().sample_step()

    journal = live(Breaking(), [START, [Sample(sample("first"))], [Sample(sample("second"))]], tmp_path)
    assert failure(journal, "first").category == "server"
    assert isinstance(journal.sampled["second"], SampleResult)


def test_sampling_goes_on_while_a_batch_trains(tmp_path: Path) -> None:
    start = [*START, *submits(create("m"), forward_backward("m", 1)), Sample(sample("r", stream=True))]
    journal = live(FakeEngine(layer_seconds=0.01), [start], tmp_path)
    kinds = [type(message) for message in journal.heard if not isinstance(message, Queues)]
    assert kinds.index(Tokens) < max(at for at, kind in enumerate(kinds) if kind is BatchDone)


def test_snapshots_name_what_moved_and_outdated_files_go(tmp_path: Path) -> None:
    groups = [START, submits(create("m")), submits(step("m", 1)), submits(save("m", 2, tmp_path / "saved"))]
    journal = live(FakeEngine(), groups, tmp_path, snapshot_seconds=0)
    taken = [message for message in journal.heard if isinstance(message, Snapshotted)]
    assert [(s.models[0].next_seq_id, Path(s.models[0].file).name) for s in taken] == [
        (1, "m.1.json"),
        (2, "m.2.json"),
        (3, "m.2.json"),  # a save changes no state
    ]
    assert [path.name for path in tmp_path.glob("*.json")] == ["m.2.json"]


def test_a_shutdown_finishes_the_running_batch_and_leaves_a_snapshot(tmp_path: Path) -> None:
    groups = [[*START, *submits(create("m"))], submits(forward_backward("m", 1), step("m", 2)), [Shutdown()]]
    journal = live(FakeEngine(layer_seconds=0.15), groups, tmp_path)
    assert set(journal.results) == {"m:0", "m:1"}
    assert journal.snapshots["m"].next_seq_id == 2


@pytest.mark.timed
def test_an_idle_loop_uses_no_processor_time(tmp_path: Path) -> None:
    inbox: SimpleQueue[ToEngine | None] = SimpleQueue()
    sent: list[FromEngine] = []
    scheduler = Scheduler(FakeEngine(), inbox, sent.append, WordMatcher, EngineConfig(), tmp_path)  # type: ignore[arg-type]
    spent: list[float] = []

    def run() -> None:
        scheduler.run()
        spent.append(time.thread_time())

    thread = threading.Thread(target=run)
    thread.start()
    for message in (*START, Submit(create("m")), Submit(step("m", 2)), Sample(sample("r"))):
        inbox.put(message)
    time.sleep(1.0)  # a gap is waited for, all else is done
    inbox.put(None)
    thread.join(5)
    assert spent[0] < 0.05
    assert any(isinstance(message, BatchDone) for message in sent)


def test_a_snapshot_for_which_the_disk_has_no_room_ends_the_engine_and_not_its_model(tmp_path: Path) -> None:
    class Full(FakeEngine):
        def restore(self, snapshot: ModelSnapshot) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    told: list[FromEngine] = []
    inbox: SimpleQueue[ToEngine | None] = SimpleQueue()
    for message in (Restore((ModelSnapshot("m", 1, 1, "m.json"),), (), 2), Restored(), Shutdown()):
        inbox.put(message)
    with pytest.raises(OSError, match="No space"):
        Scheduler(Full(), inbox, told.append, WordMatcher, EngineConfig(), tmp_path).run()
    assert not any(isinstance(message, ModelLost) for message in told)

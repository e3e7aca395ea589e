"""The end of an engine amid a batch: it does not wait for a long one, and the next engine runs that batch again."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from loreloop.engine.contract import Pause, no_pause
from loreloop.engine.fake import FakeEngine
from loreloop.protocol.link import ModelSnapshot, Shutdown, Snapshotted
from loreloop.protocol.training import Failure, ForwardBackward, PassResult
from loreloop.scheduler import loop
from tests.scheduler.harness import EMPTY, Journal, live
from tests.scheduler.ops import create, forward_backward, step

MINUTE = 6000  # products of 10 ms


class SlowEngine(FakeEngine):
    """Every batch takes so many products of 10 ms."""

    def __init__(self, n_products: int) -> None:
        super().__init__()
        self.n_products = n_products

    def train(self, passes: Sequence[ForwardBackward], pause: Pause) -> list[PassResult | Failure]:
        for _ in range(self.n_products):
            time.sleep(0.01)
            pause()
        return super().train(passes, pause)


@pytest.mark.timed
@pytest.mark.parametrize("decode_gap_ms", [0, 200])
def test_a_long_batch_is_broken_off_and_runs_again_in_the_next_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode_gap_ms: int
) -> None:
    monkeypatch.setattr(loop, "LAST_BATCH_SECONDS", 0.3)
    journal = Journal()
    ops = [journal.accept(op) for op in (create("m"), forward_backward("m", 1), step("m", 2))]
    started = time.monotonic()
    first = [EMPTY, *journal.replay()[-1:], *ops]
    live(SlowEngine(MINUTE), [first, [Shutdown()]], tmp_path, journal=journal, decode_gap_ms=decode_gap_ms)
    assert 0.3 <= time.monotonic() - started < 2
    assert set(journal.results) == {"m:0"}
    assert not [message for message in journal.heard if isinstance(message, Snapshotted)], "amid a batch"

    live(SlowEngine(1), [journal.replay()], tmp_path, journal=journal)
    calm = Journal()
    live(SlowEngine(1), [[EMPTY, *calm.replay()[-1:], *(calm.accept(op.op) for op in ops)]], tmp_path, journal=calm)
    assert set(journal.results) == {"m:0", "m:1", "m:2"}
    assert journal.results == calm.results


class SlowToSave(FakeEngine):
    """Every snapshot takes a minute."""

    def snapshot(self, folder: str, plan_no: int, pause: Pause = no_pause) -> list[ModelSnapshot]:
        for _ in range(MINUTE):
            time.sleep(0.01)
            pause()
        return super().snapshot(folder, plan_no, pause)


@pytest.mark.timed
@pytest.mark.parametrize(
    ("engine", "said", "not_said"),
    [(SlowToSave(), "the snapshot is broken off", "batch"), (SlowEngine(MINUTE), "batch is broken off", "snapshot")],
    ids=["snapshot", "batch"],
)
def test_the_log_says_what_was_broken_off(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    engine: FakeEngine,
    said: str,
    not_said: str,
) -> None:
    monkeypatch.setattr(loop, "LAST_BATCH_SECONDS", 0.1)
    journal = Journal()
    ops = [journal.accept(op) for op in (create("m"), forward_backward("m", 1))]
    with caplog.at_level(logging.INFO):
        script = [[EMPTY, *journal.replay()[-1:], *ops], [Shutdown()]]
        live(engine, script, tmp_path, journal=journal, decode_gap_ms=0, snapshot_seconds=0.0)
    (told,) = [record.getMessage() for record in caplog.records if "broken off" in record.getMessage()]
    assert said in told
    assert not_said not in told

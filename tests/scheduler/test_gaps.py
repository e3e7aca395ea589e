"""Samples beside small training operations: a token comes as often as the setting says, however many there are."""

from pathlib import Path
from queue import SimpleQueue
from typing import Any

from loreloop.config import EngineConfig
from loreloop.engine.contract import Pause, SampleEvent, no_pause
from loreloop.engine.fake import FakeEngine
from loreloop.protocol.link import BatchDone, Restored, Sample, Shutdown, Submit, ToEngine
from loreloop.protocol.training import OptimStep, StepResult
from loreloop.scheduler.loop import Scheduler
from tests.scheduler.harness import EMPTY
from tests.scheduler.ops import create, sample, step
from tests.scheduler.words import WordMatcher


class Timed(FakeEngine):
    """Each step of an optimizer takes 60 ms, and one of the sampler 10, by a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.steps = 0.0, list[float]()

    def optim_step(self, op: OptimStep, pause: Pause = no_pause) -> StepResult:
        self.now += 0.06
        return super().optim_step(op)

    def sample_step(self) -> list[SampleEvent]:
        self.steps.append(self.now)
        self.now += 0.01
        return super().sample_step()


def test_many_small_operations_do_not_put_samples_off(tmp_path: Path) -> None:
    engine = Timed()
    inbox: SimpleQueue[ToEngine | None] = SimpleQueue()

    def send(message: Any) -> None:
        if isinstance(message, BatchDone) and message.ends[-1].request_id == "m:119":
            inbox.put(Shutdown())

    operations = (create("m"), *(step("m", number) for number in range(1, 120)))
    for message in (EMPTY, Restored(), Sample(sample("s", max_tokens=24)), *map(Submit, operations)):
        inbox.put(message)
    config = EngineConfig(decode_gap_ms=200, snapshot_seconds=1e9)
    Scheduler(engine, inbox, send, WordMatcher, config, tmp_path, clock=lambda: engine.now).run()
    gaps = [later - earlier for earlier, later in zip(engine.steps, engine.steps[1:], strict=False)]
    assert len(gaps) >= 23
    assert max(gaps) <= 0.2 + 0.06 + 0.02

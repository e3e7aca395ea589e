"""The engine process of a simulated world: the scheduler's own code around the engine of plain arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from loreloop.config import EngineConfig
from loreloop.engine.contract import Pause, no_pause
from loreloop.engine.fake import FakeEngine
from loreloop.protocol.link import Hello, Shutdown
from loreloop.protocol.training import Failure, ForwardBackward, OptimStep, PassResult, StepResult
from loreloop.scheduler.loop import Scheduler
from tests.scheduler.words import WordMatcher
from tests.simulation.disk import Disk
from tests.simulation.process import ThreadProcess
from tests.simulation.timeline import Timeline
from tests.simulation.wire import Wire


@dataclass(frozen=True)
class Pace:
    """How long things take in an engine, and how often it takes snapshots; `mixes` as of the fake engine."""

    layer_seconds: float
    token_seconds: float
    snapshot_seconds: float
    mixes: bool


class WatchedEngine(FakeEngine):
    """Says what it executes: `group_of` holds for every pass how many shared its last batch, in whichever engine."""

    def __init__(self, pace: Pace, sleep: Callable[[float], None], group_of: dict[str, int]) -> None:
        super().__init__(
            rooms=6,
            mixes=pace.mixes,
            layer_seconds=pace.layer_seconds,
            token_seconds=pace.token_seconds,
            sleep=sleep,
        )
        self.group_of = group_of
        self.executed: Counter[str] = Counter()

    def train(self, passes: Sequence[ForwardBackward], pause: Pause) -> list[PassResult | Failure]:
        results = super().train(passes, pause)
        for op in passes:
            self.executed[op.request_id] += 1
            self.group_of[op.request_id] = sum(isinstance(result, PassResult) for result in results)
        return results

    def optim_step(self, op: OptimStep, pause: Pause = no_pause) -> StepResult:
        self.executed[op.request_id] += 1
        return super().optim_step(op, pause)


class EngineProcess:
    """One life of an engine. `wire` is its connection, once it has one."""

    def __init__(
        self,
        timeline: Timeline,
        disk: Disk,
        pace: Pace,
        group_of: dict[str, int],
        ended: Callable[[EngineProcess, BaseException | None], None],
    ) -> None:
        self.timeline, self.pace = timeline, pace
        self.wire: Wire | None = None
        self.process = ThreadProcess(timeline, disk, "engine", self._main, lambda error: ended(self, error))
        self.engine = WatchedEngine(pace, self.process.sleep, group_of)
        self.folder = disk.root / "journal" / "snapshots" / "fake"

    @property
    def is_over(self) -> bool:
        return self.process.is_over

    def connect(self, wire: Wire) -> None:
        """Begins its work on a connection."""
        self.wire = wire
        self.timeline.after(0.0, self.process.resume)

    def shut_down(self) -> None:
        """Asks it to end in order, as a signal does."""
        if self.wire and not self.is_over:
            self.wire.inbox.put(Shutdown())

    def n_executed_twice(self) -> int:
        """Operations that this engine has executed more than once."""
        return sum(number > 1 for number in self.engine.executed.values())

    def _main(self) -> None:
        assert self.wire
        wire = self.wire
        wire.send(Hello("fake", self.engine.info, 0))
        config = msgspec.structs.replace(EngineConfig(), snapshot_seconds=self.pace.snapshot_seconds, decode_gap_ms=5)
        scheduler = Scheduler(
            self.engine,
            wire.inbox,  # type: ignore[arg-type]
            wire.send,
            WordMatcher,  # type: ignore[arg-type]
            config,
            self.folder,
            clock=lambda: self.timeline.now,
        )
        scheduler.run()

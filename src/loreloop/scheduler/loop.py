"""The loop around one engine: receive, admit, sample a step, train a slice, send.

In: messages of `protocol/link.py` from a queue. Out: messages to a function. Every training operation and every sample
ends exactly once, as a result or a failure. With nothing to do the loop sleeps in the queue. It does not know what the
engine computes, who asked, or how messages travel.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from loreloop.config import EngineConfig
from loreloop.engine.contract import Engine
from loreloop.protocol.errors import outcome_of
from loreloop.protocol.link import (
    CancelSample,
    DropModel,
    DropRevision,
    FromEngine,
    Leaving,
    Meters,
    Queues,
    Restore,
    Restored,
    Sample,
    Shutdown,
    SnapshotRecorded,
    Submit,
    ToEngine,
)
from loreloop.scheduler.error_boundary import within_boundary
from loreloop.scheduler.sample_collector import MatcherFactory
from loreloop.scheduler.sampling import Sampling
from loreloop.scheduler.training import Training

LOG = logging.getLogger(__name__)
METER_SECONDS = 1.0  # between two tellings of what the engine counts
LAST_BATCH_SECONDS = 2.5  # for the batch that runs when the end is asked for; it is broken off then, and runs again
UNHURRIED_SECONDS = 0.1  # training looks up for messages this often where no sample waits for its next token


class _LinkEnded(BaseException):
    """Nobody is there to hear a result: whatever runs is broken off. No error of any operation."""


class _BrokenOff(BaseException):
    """The end was asked for, and the batch that runs takes too long. Nothing of it is kept, and no snapshot is taken
    amid it: the next engine is given it anew."""


class _LoopFailed(BaseException):
    """The loop itself failed inside a batch: no fault of that batch's operations. Its cause says what happened."""


class Scheduler:
    """`inbox` gives None when the link has ended; `snapshot_folder` is where the engine writes its snapshots; `ready`
    is called when all that was there before is known, and work begins; `clock` counts seconds."""

    def __init__(
        self,
        engine: Engine,
        inbox: SimpleQueue[ToEngine | None],
        send: Callable[[FromEngine], None],
        new_matcher: MatcherFactory,
        config: EngineConfig,
        snapshot_folder: Path,
        *,
        ready: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ready, self._clock = ready, clock
        self._inbox, self._send = inbox, send
        self._sampling = Sampling(engine, send, within_boundary, new_matcher)
        self._training = Training(engine, send, within_boundary, config, snapshot_folder, clock)
        self._gap_seconds = config.decode_gap_ms / 1000
        self._engine, self._queues, self._meters = engine, Queues(0, 0, 0), Meters()
        self._metered_seconds = 0.0  # when they were told last
        self._closing = False
        self._closed_seconds = 0.0  # when the end was asked for
        self._due_seconds = self._resumed_seconds = 0.0  # when samples are looked after next, and training went on

    def run(self) -> None:
        """Until a `Shutdown`, or the end of the link."""
        try:
            while not self._closing:
                if not self._sampling.busy and not self._training.busy:
                    # What was told last would stand until something comes.
                    self._tell_queues()
                    self._tell_meters()
                    self._handle(self._inbox.get())
                # With training at hand samples step only when they are due; alone they step at once.
                is_due = self._clock() >= self._due_seconds
                self._look_up(sample=is_due or not self._training.busy or not self._gap_seconds)
                self._training.advance(self._pause)
            self._training.close()
        except _LinkEnded:
            if not self._training.going:
                LOG.warning("the HTTP process hung up before this engine knew what it has to do")
        except _BrokenOff:
            pass
        except _LoopFailed as failed:
            raise failed.__cause__ or failed from None

    def _pause(self) -> None:
        """Within a batch: looks up when the next stretch of training, if it is as long as the last, would be late."""
        now = self._clock()
        if now + (now - self._resumed_seconds) >= self._due_seconds:
            # An error of the loop must pass through the engine's code as something that no handler there takes for its
            # own.
            failed = outcome_of(partial(self._look_up, sample=self._gap_seconds > 0))
            if isinstance(failed, Exception):
                raise _LoopFailed from failed
            now = self._clock()
            if self._closing and now >= self._closed_seconds + LAST_BATCH_SECONDS:
                if self._training.snapshotting:
                    # Its batches are done; they run again only as far as the snapshot before does not hold them.
                    LOG.info("the snapshot is broken off; the next start goes on from the one before")
                else:
                    LOG.info("the running batch is broken off; it runs again at the next start")
                raise _BrokenOff
        self._resumed_seconds = now

    def _look_up(self, *, sample: bool) -> None:
        """Reads messages, and lets all samples take a step."""
        started = self._clock()
        while not self._inbox.empty():
            self._handle(self._inbox.get())
        self._sampling.admit()
        if sample:
            self._sampling.step()
        hurried = self._sampling.busy and self._gap_seconds > 0
        due_seconds = started + (self._gap_seconds if hurried else UNHURRIED_SECONDS)
        # Samples that were only looked at are due when they were: many small batches would put their step off for ever.
        self._due_seconds = due_seconds if sample or not hurried else min(self._due_seconds, due_seconds)
        self._resumed_seconds = self._clock()
        self._tell_queues()
        if self._resumed_seconds >= self._metered_seconds + METER_SECONDS:
            self._tell_meters()

    def _handle(self, message: ToEngine | None) -> None:
        match message:
            case None:
                raise _LinkEnded
            case Restore():
                self._training.restore(message)
            case Restored():
                self._training.go()
                self._ready()
            case Submit(op, alone):
                self._training.submit(op, alone=alone)
            case Sample(op):
                self._sampling.submit(op)
            case CancelSample(request_id):
                self._sampling.cancel(request_id)
            case DropModel(model_id):
                self._training.drop(model_id)
            case DropRevision(revision_id):
                self._sampling.drop_revision(revision_id)
            case SnapshotRecorded(plan_no):
                self._training.snapshot_recorded(plan_no)
            case Shutdown():
                self._closing, self._closed_seconds = True, self._clock()
                self._send(Leaving())

    def _tell_queues(self) -> None:
        queues = Queues(self._sampling.waiting, self._sampling.running, self._training.waiting)
        if queues != self._queues:
            self._queues = queues
            self._send(queues)

    def _tell_meters(self) -> None:
        self._metered_seconds = self._clock()
        meters = self._engine.meters
        if meters != self._meters:
            self._meters = meters
            self._send(meters)

"""An engine of several processes: the first tells the others what it does, and all do it in the same order.

Every process holds its share of the tensors, and the same pages, prefixes and draws: from equal commands come equal
states (`divergence.py`), and where they do not the engine ends. What is said is what the scheduler asks of
`engine.contract.Engine`, by name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar, TypeVarTuple

import msgspec

from loreloop.engine.contract import Pause, SampleEvent, no_pause
from loreloop.engine.divergence import Divergence
from loreloop.engine.local import LocalEngine
from loreloop.protocol.errors import LoreloopError, outcome_of
from loreloop.protocol.link import EngineInfo, Meters, ModelSnapshot
from loreloop.protocol.sampling import SampleOp
from loreloop.protocol.training import (
    CreateModel,
    Failure,
    ForwardBackward,
    LoadState,
    OptimStep,
    PassResult,
    SavedResult,
    SaveExternal,
    SaveSampler,
    SaveState,
    StepResult,
)

LOG = logging.getLogger("loreloop.engine")
A = TypeVarTuple("A")
T = TypeVar("T")
PAUSES = 8  # of training, between two at which the first process may have something to say
CALLS: dict[str, Any] = {
    "create_model": tuple[CreateModel],
    "drop_model": tuple[str],
    "optim_step": tuple[OptimStep],
    "save_state": tuple[SaveState],
    "save_sampler": tuple[SaveSampler],
    "save_external": tuple[SaveExternal],
    "load_state": tuple[LoadState],
    "train": tuple[tuple[ForwardBackward, ...]],
    "snapshot": tuple[str, int],
    "restore": tuple[ModelSnapshot],
    "admit": tuple[SampleOp],
    "sample_step": tuple[()],
    "finish_sample": tuple[str, int],
    "cancel_sample": tuple[str],
    "drop_revision": tuple[str],
}
FAILED = "failed"  # what a call gives that has failed, whatever each process says of it
GO_ON, BREAK_OFF = "go_on", "break_off"


Amid = Callable[[str], contextlib.AbstractContextManager[None]]


def _unwatched(name: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


class BrokenOff(Exception):
    """Training was broken off in the first process, and so it is here."""


class LeadingEngine:
    """The first process's engine, as the scheduler drives it. Each of its calls is made `amid` something by the call's
    name, for whoever looks whether the processes still do anything."""

    def __init__(self, engine: LocalEngine, amid: Amid = _unwatched) -> None:
        self.engine, self.divergence, self.amid = engine, Divergence(engine), amid

    @property
    def info(self) -> EngineInfo:
        """Of the whole engine."""
        return self.engine.info

    @property
    def meters(self) -> Meters:
        """Of the first process, which are those of each."""
        return self.engine.meters

    @property
    def sampling(self) -> bool:
        """Whether any admitted sample is unfinished."""
        return self.engine.sampling

    def create_model(self, op: CreateModel, pause: Pause = no_pause) -> None:
        """On every process, as all of the following. Only passes pause: the others would not know when to."""
        self._all(self.engine.create_model, op)

    def drop_model(self, model_id: str) -> None:
        """See `Engine`."""
        self._all(self.engine.drop_model, model_id)

    def optim_step(self, op: OptimStep, pause: Pause = no_pause) -> StepResult:
        """See `Engine`."""
        return self._all(self.engine.optim_step, op)

    def save_state(self, op: SaveState, pause: Pause = no_pause) -> SavedResult:
        """See `Engine`."""
        return self._all(self.engine.save_state, op)

    def save_sampler(self, op: SaveSampler, pause: Pause = no_pause) -> SavedResult:
        """See `Engine`."""
        return self._all(self.engine.save_sampler, op)

    def save_external(self, op: SaveExternal, pause: Pause = no_pause) -> SavedResult:
        """See `Engine`."""
        return self._all(self.engine.save_external, op)

    def load_state(self, op: LoadState, pause: Pause = no_pause) -> None:
        """See `Engine`."""
        self._all(self.engine.load_state, op)

    def train(self, passes: Sequence[ForwardBackward], pause: Pause) -> list[PassResult | Failure]:
        """See `Engine`; what is asked for in a pause is done by the other processes at the same place."""
        n_pauses, broken_off = 0, False

        def told_pause() -> None:
            nonlocal n_pauses, broken_off
            n_pauses += 1
            if n_pauses % PAUSES:
                return
            broken_off = True
            try:
                pause()
                broken_off = False
            finally:
                self._tell(BREAK_OFF if broken_off else GO_ON)

        with self.amid("train"):
            self._tell("train", tuple(passes))
            outcome = outcome_of(partial(self.engine.train, passes, told_pause))
            if isinstance(outcome, Exception):
                if broken_off:
                    raise outcome
                if isinstance(outcome, LoreloopError):
                    _compare(self.divergence, FAILED)
                    raise outcome
                _end(f"train failed in the first process: {outcome!r}", outcome)
            _compare(self.divergence, outcome)
        return outcome

    def snapshot(self, folder: str, plan_no: int, pause: Pause = no_pause) -> list[ModelSnapshot]:
        """See `Engine`."""
        return self._all(self.engine.snapshot, folder, plan_no)

    def restore(self, snapshot: ModelSnapshot) -> None:
        """See `Engine`."""
        self._all(self.engine.restore, snapshot)

    def admit(self, op: SampleOp) -> bool:
        """See `Engine`."""
        return self._all(self.engine.admit, op)

    def sample_step(self) -> list[SampleEvent]:
        """See `Engine`."""
        return self._all(self.engine.sample_step)

    def finish_sample(self, request_id: str, sample_index: int) -> None:
        """See `Engine`."""
        self._all(self.engine.finish_sample, request_id, sample_index)

    def cancel_sample(self, request_id: str) -> None:
        """See `Engine`."""
        self._all(self.engine.cancel_sample, request_id)

    def drop_revision(self, revision_id: str) -> None:
        """See `Engine`."""
        self._all(self.engine.drop_revision, revision_id)

    def _all(self, call: Callable[[*A], T], *arguments: *A) -> T:
        with self.amid(call.__name__):
            self._tell(call.__name__, *arguments)
            try:
                given = _done(call, *arguments)
            except LoreloopError:
                _compare(self.divergence, FAILED)
                raise
            _compare(self.divergence, given)
            return given

    def _tell(self, name: str, *arguments: Any) -> None:
        self.engine.place.told(msgspec.msgpack.encode((name, msgspec.Raw(msgspec.msgpack.encode(arguments)))))


def follow(engine: LocalEngine, amid: Amid = _unwatched) -> NoReturn:
    """Does what the first process does; when that ends, the system ends this one too. `amid` as in `LeadingEngine`."""
    _Following(engine, amid).go_on()
    raise AssertionError("there is no word that ends it")


class _Following:
    def __init__(self, engine: LocalEngine, amid: Amid) -> None:
        self.engine, self.divergence, self.amid = engine, Divergence(engine), amid

    def go_on(self, *until: str) -> str:
        """Does what is said until one of these words."""
        while True:
            name, raw = msgspec.msgpack.decode(self.engine.place.told(), type=tuple[str, msgspec.Raw])
            if name in until:
                return name
            with self.amid(name):
                self._do(name, *msgspec.msgpack.decode(raw, type=CALLS[name]))

    def _do(self, name: str, *arguments: Any) -> None:
        try:
            if name == "train":
                self._train(*arguments)
                return
            given = _done(getattr(self.engine, name), *arguments)
        except LoreloopError:
            given = FAILED  # in the first process too, which tells whoever asked
        _compare(self.divergence, given)

    def _train(self, passes: Sequence[ForwardBackward]) -> None:
        n_pauses = 0

        def pause() -> None:
            nonlocal n_pauses
            n_pauses += 1
            if n_pauses % PAUSES == 0 and self.go_on(GO_ON, BREAK_OFF) == BREAK_OFF:
                raise BrokenOff

        with contextlib.suppress(BrokenOff):
            _compare(self.divergence, self.engine.train(passes, pause))


def _compare(divergence: Divergence, given: object) -> None:
    """SystemExit where the processes have come to differ."""
    if why := divergence.add(given):
        _end(why)


def _done(call: Callable[[*A], T], *arguments: *A) -> T:
    """What a call gives here. SystemExit where it fails by a fault of ours: the processes' states may differ then."""
    outcome = outcome_of(partial(call, *arguments))
    if isinstance(outcome, LoreloopError):
        raise outcome
    if isinstance(outcome, Exception):
        _end(f"{call.__name__} failed: {outcome!r}", outcome)
    return outcome


def _end(why: str, error: Exception | None = None) -> NoReturn:
    """Ends this process, and with it the engine, which is started again whole."""
    LOG.error("the engine ends: %s", why, exc_info=error)
    sys.stderr.flush()
    # At once: the other processes may wait for a word of this one, and whatever is on its way here would send one.
    os._exit(1)

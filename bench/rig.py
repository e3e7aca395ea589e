"""What the rows share: an engine on the default model, data for it, and alternating measurements.

Every ratio is taken within one run: what is compared takes turns, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from loreloop.config import Config, EngineConfig
from loreloop.engine.contract import SampleEvent, TokenEvent
from loreloop.engine.local import LocalEngine
from loreloop.protocol.sampling import Revision, SampleOp, SamplingParams
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.training import (
    AdamParams,
    CreateModel,
    Datum,
    ForwardBackward,
    LoraSpec,
    OptimStep,
    PassResult,
    SaveSampler,
    TextChunk,
)

Ids = NDArray[np.int64]
MODEL = "smollm2-135m"
MOE_MODEL = "smollm2-moe-4x135m"
SLOW_SECONDS = 30.0  # a side that takes this long has three turns


@dataclass(frozen=True)
class Figure:
    """One number: its unit and what the issue asks of it (None: for the record).

    Without a value it was not measured, and `missing` says what it takes. `threads` are those of the sides compared.
    """

    name: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    missing: str | None = None
    threads: dict[str, int] | None = None

    @property
    def met(self) -> bool | None:
        if self.value is None or (self.at_least is None and self.at_most is None):
            return None
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


def folder(model: str = MODEL) -> Path:
    from loreloop.formats.adding import ensure
    from loreloop.formats.catalog import Catalog  # its libraries may be missing where only bench.gpu runs

    return ensure(Catalog(Config().data_path), model, blocks=model == MODEL).folder


def engine(model: str = MODEL, **settings: object) -> LocalEngine:
    """With a thread count that stays as it is set; an engine left to itself takes what the machine's load leaves."""
    config = EngineConfig(**({"threads": n_cores()} | settings))  # type: ignore[arg-type]
    return LocalEngine(config, model, folder(model), Path(tempfile.mkdtemp()))


def n_cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Side:
    """Work that takes turns with others'; if it gives a float, it has timed itself.

    `trial` is a short piece of it, by which its thread count is chosen; without one the side has `n_threads`, or as
    many as the side before it.
    """

    work: Callable[[], object]
    trial: Callable[[], object] | None = None
    n_threads: int | None = None
    set_threads: Callable[[int], object] = torch.set_num_threads


@dataclass(frozen=True)
class Turns:
    """Median seconds and thread count of each side."""

    seconds: dict[str, float]
    threads: dict[str, int]

    def note(self, figures: Sequence[Figure]) -> list[Figure]:
        """The figures, which say at how many threads each side ran."""
        return [replace(figure, threads=self.threads) for figure in figures]


def alternating(sides: dict[str, Side], turns: int = 5) -> Turns:
    """They take turns: `turns` of them, or three where a side is slow."""
    threads = _chosen_threads(sides)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    n_done = 0
    while n_done < turns:
        for name, side in sides.items():
            side.set_threads(threads[name])
            seconds[name].append(seconds_of(side.work))
        n_done += 1
        if n_done == 1 and max(values[0] for values in seconds.values()) > SLOW_SECONDS:
            turns = min(turns, 3)
    return Turns({name: statistics.median(values) for name, values in seconds.items()}, threads)


def _chosen_threads(sides: dict[str, Side]) -> dict[str, int]:
    threads: dict[str, int] = {}
    n_threads = n_cores()
    for name, side in sides.items():
        if side.n_threads:
            n_threads = side.n_threads
        elif side.trial:
            n_threads = best_threads(side.trial, side.set_threads)
        threads[name] = n_threads
    return threads


def best_threads(trial: Callable[[], object], set_threads: Callable[[int], object] = torch.set_num_threads) -> int:
    """Of 1, 2, 4, … and all cores the number at which the trial is fastest, by two tries each; it stays set."""
    counts = [*(1 << power for power in range(n_cores().bit_length()) if 1 << power < n_cores()), n_cores()]
    best, least = n_cores(), float("inf")
    set_threads(best)
    trial()  # warms up, where there is nothing to choose as well
    for n_threads in counts if len(counts) > 1 else []:
        set_threads(n_threads)
        if (seconds := min(seconds_of(trial) for _ in range(2))) < least:
            best, least = n_threads, seconds
    set_threads(best)
    return best


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    result = work()
    return result if isinstance(result, float) else time.perf_counter() - started


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def random_ids(rng: np.random.Generator, n: int) -> Ids:
    return rng.integers(3, 49_000, n)


def datum(tokens: Ids, first_target: int = 1) -> Datum:
    """Cross-entropy on every token from `first_target` on."""
    weights = (np.arange(1, len(tokens)) >= first_target).astype(np.float32)
    targets = tokens[1:].astype(np.int64)
    return Datum(text(tokens[:-1]), {"target_tokens": tensor_of(targets), "weights": tensor_of(weights)})


def text(tokens: Ids) -> tuple[TextChunk, ...]:
    return (TextChunk(tokens.astype("<i4").tobytes()),)


def run_pass(
    running: LocalEngine, data: Sequence[Datum], *, model: str = "m", forward_only: bool = False
) -> PassResult:
    return run_passes(
        running, [ForwardBackward(model, 1, f"{model}:1", tuple(data), "cross_entropy", {}, forward_only)]
    )[0]


def run_passes(running: LocalEngine, passes: Sequence[ForwardBackward]) -> list[PassResult]:
    return running.train(passes, lambda: None)  # type: ignore[return-value]


def train_step(running: LocalEngine, data: Sequence[Datum], model: str = "m") -> None:
    run_pass(running, data, model=model)
    running.optim_step(OptimStep(model, 2, f"{model}:2", AdamParams(learning_rate=1e-5)))


def new_model(
    running: LocalEngine, rank: int = 32, *, model: str = "m", unembed: bool = False, mlp: bool = True
) -> None:
    spec = LoraSpec(rank, 1, train_unembed=unembed, train_mlp=mlp)
    running.create_model(CreateModel(model, 0, f"{model}:0", spec))


def saved_revision(running: LocalEngine, name: str = "r", rank: int = 32, *, mlp: bool = True) -> Revision:
    """An adapter that changes something, ready to sample from."""
    new_model(running, rank, model=name, mlp=mlp)
    state = running.bank.get(name)
    state.master += 0.02 * state.master.std()
    state.refresh_weights()
    at = str(Path(tempfile.mkdtemp()) / "revision")
    running.save_sampler(SaveSampler(name, 1, f"{name}:1", at, name))
    running.drop_model(name)
    return Revision(name, at)


def sample_op(name: str, prompt: Ids, revision: Revision | None, n_new: int, *, seed: int, n: int = 1) -> SampleOp:
    return SampleOp(name, "bench", revision, text(prompt), n, SamplingParams(max_tokens=n_new, seed=seed))


def decode_steps(running: LocalEngine, ops: Sequence[SampleOp]) -> list[float]:
    """Runs all samples; gives the seconds of the steps in which every one of them drew a token and no prompt ended."""
    seconds: list[float] = []

    def heard(events: Sequence[SampleEvent], step_seconds: float) -> None:
        if len(events) == len(ops) and all(isinstance(event, TokenEvent) for event in events):
            seconds.append(step_seconds)

    run_samples(running, ops, heard)
    return seconds


def run_samples(
    running: LocalEngine,
    ops: Sequence[SampleOp],
    heard: Callable[[Sequence[SampleEvent], float], None] = lambda events, seconds: None,
) -> dict[str, list[TokenEvent]]:
    """All tokens by request; `heard` is told each step's events and seconds.

    What earlier runs left in the prefix tree is forgotten first.
    """
    for namespace in list(running.sampler.tree.roots):
        running.sampler.tree.drop(namespace)
    events: dict[str, list[TokenEvent]] = {op.request_id: [] for op in ops}
    waiting = list(ops)
    while waiting or running.sampling:
        while waiting and running.admit(waiting[0]):
            waiting.pop(0)
        started = time.perf_counter()
        step_events = running.sample_step()
        heard(step_events, time.perf_counter() - started)
        for event in step_events:
            if isinstance(event, TokenEvent):
                events[event.request_id].append(event)
    return events

"""How cost grows with batch, length, rank and number of adapters: seconds of one training pass or decoding step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from bench.rig import (
    Figure,
    datum,
    decode_steps,
    engine,
    new_model,
    random_ids,
    run_passes,
    sample_op,
    saved_revision,
    timed,
)
from loreloop.engine.local import LocalEngine
from loreloop.protocol.training import ForwardBackward

TURNS = 3


def scaling() -> list[Figure]:
    """Training over batch, length, rank and adapters; a decoding step over rows, context and adapters."""
    running = engine(resident_models=8, resident_revisions=8)
    for rank in (8, 16, 32, 64, 128):
        new_model(running, rank, model=f"rank{rank}")
    grown = [
        *_grown("training over batch", (1, 2, 4, 8, 16), lambda n: _trained(running, n, 256)),
        *_grown("training over length", (128, 256, 512, 1024, 2048), lambda n: _trained(running, 1, n)),
        *_grown("training over rank", (8, 16, 32, 64, 128), lambda n: _trained(running, 4, 256, rank=n)),
    ]
    running = engine(resident_models=8, resident_revisions=8)
    for number in range(8):
        new_model(running, 32, model=f"model{number}")
    grown += _grown("training over adapters, 8 x 256", (1, 2, 4, 8), lambda n: _trained_by(running, n))
    revisions = [saved_revision(running, f"r{number}", 8) for number in range(8)]
    grown += _grown("decoding over rows", (1, 2, 4, 8, 16, 32, 64), lambda n: _step(running, n, 64, revisions[:1]))
    grown += _grown("decoding over context, 8 rows", (64, 256, 1024), lambda n: _step(running, 8, n, revisions[:1]))
    grown += _grown("decoding over adapters, 32 rows", (1, 2, 4, 8), lambda n: _step(running, 32, 64, revisions[:n]))
    return grown


def _grown(name: str, sizes: Sequence[int], seconds: Callable[[int], float]) -> list[Figure]:
    """A figure for each size, and the power of the size with which the time grows (least squares over logarithms)."""
    times = [seconds(n) for n in sizes]
    exponent = np.polyfit([math.log(n) for n in sizes], [math.log(t) for t in times], 1)[0]
    points = [Figure(f"{name}: {n}", 1e3 * t, "ms") for n, t in zip(sizes, times, strict=True)]
    return [*points, Figure(f"{name}: exponent", float(exponent), "")]


def _pass(model: str, n: int, length: int) -> ForwardBackward:
    rng = np.random.default_rng(n)
    data = tuple(datum(random_ids(rng, length)) for _ in range(n))
    return ForwardBackward(model, 1, f"{model}:1", data, "cross_entropy", {}, False)


def _trained(running: LocalEngine, n: int, length: int, *, rank: int = 32) -> float:
    work = _pass(f"rank{rank}", n, length)
    return statistics.median(timed(lambda: run_passes(running, [work])) for _ in range(TURNS))


def _trained_by(running: LocalEngine, n_adapters: int) -> float:
    works = [_pass(f"model{number}", 8 // n_adapters, 256) for number in range(n_adapters)]
    return statistics.median(timed(lambda: run_passes(running, works)) for _ in range(TURNS))


def _step(running: LocalEngine, n: int, n_prompt: int, revisions: Sequence[object]) -> float:
    rng = np.random.default_rng(0)
    ops = [
        sample_op(str(i), random_ids(rng, n_prompt), revisions[i % len(revisions)], 24, seed=i)  # type: ignore[arg-type]
        for i in range(n)
    ]
    return statistics.median(decode_steps(running, ops))

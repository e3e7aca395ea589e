"""`python -m bench.plan_known`: the planner's constants fitted to one half of what bench/results holds already of the
default model on a CPU, and held against the other half. Measures nothing; writes bench/results/plan-known.json.

Figures of one run (`scaling`) were measured within minutes of one another. All rows together are of several days and
kernels, so that a part of their error is none of the model's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bench.plan_fit import MEDIAN_ERROR, base_of, machine_of, part_of
from bench.record import RESULTS, line, write_record
from bench.rig import Figure
from loreloop.plan.devices import GIGA, Device
from loreloop.plan.fitting import Fit, Observation, fit
from loreloop.plan.wish import Wish

# The default model's own, of which only its shape is needed.
SHAPE = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49_152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
BASE = base_of(SHAPE, "the default model")
# What comes out as a share is then in billions of operations or bytes a second.
UNIT = Device("processor", n_bytes=1e12, flops=GIGA, memory_rate=GIGA, inner_rate=GIGA, outer_rate=GIGA, per_node=1)
# What a figure's name says of the run `scaling`: what varies there, beside what `bench/rows/scaling.py` holds fast.
# Micro-batches have 512 rows, and a single longer sequence is one.
VARIED: Mapping[str, tuple[str, dict[str, int]]] = {
    "training over batch": ("n", {"tokens": 255, "rank": 32, "batch_rows": 510}),
    "training over length": ("tokens", {"n": 1, "rank": 32, "batch_rows": 2048}),
    "training over rank": ("rank", {"n": 4, "tokens": 255, "batch_rows": 510}),
    "decoding over rows": ("n", {"tokens": 64, "rank": 8, "batch_rows": 512}),
    "decoding over context, 8 rows": ("tokens", {"n": 8, "rank": 8, "batch_rows": 512}),
}
NEW_TOKENS = 24  # drawn behind a prompt there


def figures_in(name: str) -> dict[str, float]:
    """A record's values by their names."""
    record = json.loads((RESULTS / f"{name}.json").read_text())
    return {one["name"]: one["value"] for one in record["figures"] if "value" in one}


def of_scaling() -> Iterator[Observation]:
    """The run that varies one thing at a time."""
    for name, milliseconds in figures_in("scaling").items():
        found = re.fullmatch(r"(.*): (\d+)", name)
        if found is None or found[1] not in VARIED:
            continue
        varied, fixed = VARIED[found[1]]
        sizes = fixed | {varied: int(found[2])}
        kind = "train" if name.startswith("training") else "draw"
        if name.startswith("training over length"):
            sizes["tokens"] -= 1  # the last one is only a target
        yield _observed(f"{found[1]}: {int(found[2]):04}", kind, sizes, milliseconds / 1e3, NEW_TOKENS)


def of_others() -> Iterator[Observation]:
    """Rows of other runs: whole steps of training by their tokens a second, and steps of decoding."""
    plain = {"n": 16, "tokens": 256, "rank": 32, "batch_rows": 512}
    yield _observed("train", "train", plain, 4096 / figures_in("train")["16 x 256: tokens/s"])
    yield _observed("tenants-train", "train", plain, 4096 / figures_in("tenants-train")["tokens/s with one adapter"])
    long = Wish(context=8191, response=8190, batch=1, group=1, rows=8191)
    groups = Wish(context=576, response=64, batch=4, group=16, rows=2048, kept=True)
    for name, figure, n_tokens, wish in (
        ("train-long", "8,192: tokens/s", 8191, long),
        ("train-groups", "4 x 16 x (512 + 64): tokens/s", 64 * 576, groups),
    ):
        part = machine_of(BASE, wish, UNIT).training(wish)
        yield Observation(name, "train", part, n_tokens / figures_in(name)[figure])
    for name, n, n_new in (("decode", 1, 128), ("decode-32", 32, 64)):
        sizes = {"n": n, "tokens": 64, "rank": 32, "batch_rows": 512}
        seconds = figures_in(name)[f"{n} x (64 + {n_new}): decoding step"] / 1e3
        yield _observed(name, "draw", sizes, seconds, n_new)


def _observed(name: str, kind: str, sizes: dict[str, int], seconds: float, new_tokens: int = 1) -> Observation:
    one: dict[str, Any] = {"kind": kind, **sizes}
    return Observation(name, kind, part_of(BASE, one, sizes["rank"], new_tokens, UNIT), seconds)


def figures_of(name: str, found: Fit) -> list[Figure]:
    """The errors of both halves, and the rates that were fitted."""
    rates = [
        _rate(f"{name}, {kind}: {what}", value, unit)
        for kind, of_kind in found.rates.items()
        for what, value, unit in (
            ("products", of_kind.compute, "Gflop/s"),
            ("memory", of_kind.memory, "GB/s"),
            ("a layer's start", 1e6 * of_kind.layer_seconds, "us"),
        )
    ]
    return [
        Figure(f"{name}: median error, fitted half", 100 * found.median_fitted, "%"),
        Figure(f"{name}: median error, half held back", 100 * found.median_held, "%", at_most=100 * MEDIAN_ERROR),
        Figure(f"{name}: largest error, half held back", 100 * max(found.held.values()), "%"),
        *rates,
    ]


def _rate(name: str, value: float, unit: str) -> Figure:
    if math.isinf(value):
        return Figure(name, None, unit, missing="observations that take time for it")
    return Figure(name, value, unit)


def main() -> None:
    """Fits, prints and writes."""
    one_run = list(of_scaling())
    figures = [
        *figures_of("one run", fit(one_run)),
        *figures_of("all rows", fit([*one_run, *of_others()])),
    ]
    for figure in figures:
        print(line("plan-known", figure))
    write_record(RESULTS, "plan-known", __doc__ or "", figures)


if __name__ == "__main__":
    main()

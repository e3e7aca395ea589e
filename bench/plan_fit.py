"""What `bench.plan_times` has recorded as the planner sees it: parts of a step with the seconds that they took, and the
constants that fit them. Measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from bench.rig import Figure
from loreloop.formats.configuration import spec_of
from loreloop.model.families.table import family_of
from loreloop.parallel.mesh import Mesh
from loreloop.plan.devices import Device
from loreloop.plan.fitting import Observation, fit, rates_by_kind
from loreloop.plan.memory import memory_of
from loreloop.plan.rates import Rates
from loreloop.plan.times import Machine, Part
from loreloop.plan.wish import Base, Wish

KINDS = ("train", "read", "draw")
MEDIAN_ERROR = 0.10
MOST_SHARE = 100  # of a rate; what comes out larger has next to no part in the times
N_BYTES = 1e12  # a host's memory, which is not the question here


def device_of(record: Mapping[str, Any], threads: int) -> Device:
    """The processor at so many threads. One process has nobody to speak with."""
    limits = record["limits"][str(threads)]
    return Device("processor", N_BYTES, **limits, inner_rate=1e9, outer_rate=1e9, per_node=1)


def base_of(config: Mapping[str, Any], name: str) -> Base:
    """A model by its configuration."""
    config = dict(config)
    return Base(name, spec_of(config, name), family_of(config).names, packed_experts=False)


def machine_of(base: Base, wish: Wish, device: Device) -> Machine:
    """The model in one process."""
    memory = memory_of(base, wish, Mesh(), device.n_bytes)
    return Machine(base.spec, Mesh(), device, memory, memory.running)


def observations_of(record: Mapping[str, Any], threads: int) -> list[Observation]:
    """Those at so many threads."""
    bases = {name: base_of(config, name) for name, config in record["shapes"].items()}
    device, settings = device_of(record, threads), record["settings"]
    return [
        Observation(
            f"{one['shape']}: {one['kind']} {one['n']} x {one['tokens']:04}",
            one["kind"],
            part_of(bases[one["shape"]], one, settings["rank"], settings["new_tokens"], device),
            one["seconds"],
        )
        for one in record["observations"]
        if one["threads"] == threads
    ]


def part_of(base: Base, one: Mapping[str, Any], rank: int, new_tokens: int, device: Device) -> Part:
    """What the planner says that an observation takes at the published rates; `new_tokens` were drawn behind a prompt
    where drawing was timed."""
    n, tokens, rows = one["n"], one["tokens"], one["batch_rows"]
    # Training is of whole sequences: a prompt of one token, and the rest is answer.
    response = {"train": tokens - 1, "read": 1, "draw": new_tokens}[one["kind"]]
    context = tokens if one["kind"] == "train" else tokens + response
    wish = Wish(rank=rank, context=context, response=response, batch=n, group=1, rows=rows, kept=True)
    machine = machine_of(base, wish, device)
    if one["kind"] == "train":
        return machine.training(wish)
    return machine.reading(wish, n * tokens) if one["kind"] == "read" else machine.token(wish, n)


def rates_of(record: Mapping[str, Any], threads: int) -> dict[str, Rates]:
    """The rates of each kind by all that was observed, for whoever wants to predict with them."""
    return rates_by_kind(observations_of(record, threads))


def figures_of(record: Mapping[str, Any]) -> list[Figure]:
    """For each number of threads the fitted constants and the median errors, and the errors by kind."""
    figures = []
    for threads in sorted({one["threads"] for one in record["observations"]}):
        found = fit(observations_of(record, threads))
        of = f"{threads} thread{'s' if threads > 1 else ''}"
        figures += [
            Figure(f"{of}: median error, fitted half", 100 * found.median_fitted, "%"),
            Figure(f"{of}: median error, half held back", 100 * found.median_held, "%", at_most=100 * MEDIAN_ERROR),
        ]
        for kind, rates in found.rates.items():
            errors = [error for name, error in found.held.items() if f": {kind} " in name]
            figures += [
                Figure(f"{of}, {kind}: median error, half held back", 100 * statistics.median(errors), "%"),
                Figure(f"{of}, {kind}: largest error, half held back", 100 * max(errors), "%"),
                _share(f"{of}, {kind}: share of products", rates.compute),
                _share(f"{of}, {kind}: share of memory", rates.memory),
                Figure(f"{of}, {kind}: a layer's start", 1e6 * rates.layer_seconds, "us"),
                Figure(f"{of}, {kind}: overlap", rates.overlap, "x"),
            ]
    return figures


def _share(name: str, value: float) -> Figure:
    if value > MOST_SHARE:
        return Figure(name, None, "x", missing="observations that take time for it")
    return Figure(name, value, "x")

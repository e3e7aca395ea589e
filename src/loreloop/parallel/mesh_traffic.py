"""How many bytes one rank of a whole mesh says along each axis, by formula; tests hold it to what is measured.

`traffic.py` has the formulas of a tensor group; here stand those of experts and stages, and how all add up. Sums,
gathers and scatters are counted as there. An `exchange` counts what the rank sends to the others, and so does a
`hand` from stage to stage. Left out is what is small: drawn tokens, losses and messages of the first rank.

Legend: T rows, N ranks, E experts, K experts a row, D model width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from loreloop.model.spec import DecoderSpec, MoeSpec
from loreloop.parallel.mesh import Axis, Mesh
from loreloop.parallel.shares import share_of
from loreloop.parallel.traffic import FP32, Work, on_the_wire, sampling_bytes, step_bytes, training_bytes
from loreloop.protocol.training import LoraSpec

Traffic = Mapping[Axis, Counter[str]]


@dataclass(frozen=True)
class Touched:
    """Of a batch's rows, how many have an expert on a rank: of those whose home is elsewhere, in one layer."""

    elsewhere: float


def even_touch(moe: MoeSpec, n_rows: int, n_ranks: int) -> Touched:
    """What is to be expected where every choice of K experts is as likely."""
    n_here = moe.n_experts // n_ranks
    untouched = math.comb(moe.n_experts - n_here, moe.top_k) / math.comb(moe.n_experts, moe.top_k)
    n_homed = -(-n_rows // n_ranks)
    return Touched((n_rows - n_homed) * (1 - untouched))


def exchange_bytes(spec: DecoderSpec, n_rows: int, n_ranks: int, touched: Touched, n_bytes: int) -> float:
    """What a rank sends in one layer and direction: results of rows whose home is elsewhere, and its own home's rows to
    all others."""
    return (touched.elsewhere + -(-n_rows // n_ranks) * (n_ranks - 1)) * spec.d_model * n_bytes


def training_traffic(spec: DecoderSpec, mesh: Mesh, rank: int, work: Work, touched: Touched | None = None) -> Traffic:
    """A micro-batch there and back on a rank; by default experts have even loads."""
    share, at = share_of(spec, mesh, rank), mesh.at(rank)
    local, found = share.local, _nothing()
    ways = 3 if work.recomputed else 2
    if mesh.tp > 1:
        found["tp"] += training_bytes(_stage(spec, local), mesh.tp, _there(work, local), cuts_rows=mesh.cuts_rows)
        _without_ends(found["tp"], spec, mesh, at["pp"], work)
    if mesh.ep > 1 and spec.moe:
        touched = touched or even_touch(spec.moe, work.rows, mesh.ep)
        once = exchange_bytes(spec, work.rows, mesh.ep, touched, work.n_bytes)
        found["ep"]["exchange"] += round(ways * len(local.routed_layers) * once)
    hidden = (-(-work.rows // mesh.tp) if mesh.cuts_rows else work.rows) * spec.d_model * FP32  # the rank's own rows
    found["pp"]["hand"] += hidden * ((at["pp"] + 1 < mesh.pp) + (at["pp"] > 0))
    return found


def sampling_traffic(spec: DecoderSpec, mesh: Mesh, rank: int, work: Work) -> Traffic:
    """A step of sampling on a rank; `pairs` are its rows that draw."""
    local, at = share_of(spec, mesh, rank).local, mesh.at(rank)
    found = _nothing()
    if mesh.tp > 1:
        found["tp"] += sampling_bytes(_stage(spec, local), mesh.tp, _there(work, local))
        if at["pp"] > 0:
            found["tp"]["sum"] -= work.rows * spec.d_model * FP32
    if mesh.ep > 1 and spec.moe:
        touched = even_touch(spec.moe, work.rows, mesh.ep)
        once = exchange_bytes(spec, work.rows, mesh.ep, touched, work.n_bytes)
        found["ep"]["exchange"] += round(len(local.routed_layers) * once)
    found["pp"]["hand"] += work.rows * spec.d_model * FP32 * (at["pp"] + 1 < mesh.pp)
    return found


def step_traffic(spec: DecoderSpec, mesh: Mesh, rank: int, lora: LoraSpec) -> Traffic:
    """An optimizer's step on a rank: the gradients of factors that are copied."""
    share, found = share_of(spec, mesh, rank), _nothing()
    layout = share.layout(lora)
    for cut in share.cuts:
        if cut.axis != "pp":
            found[cut.axis] += step_bytes(share, layout, mesh.sizes[cut.axis], cut.axis)
    return found


def sent(traffic: Traffic, mesh: Mesh) -> dict[Axis, float]:
    """Bytes that the rank sends along each axis, where collectives go round a ring."""
    return {axis: on_the_wire(said, mesh.sizes[axis]) for axis, said in traffic.items()}


def _nothing() -> dict[Axis, Counter[str]]:
    return {"pp": Counter(), "ep": Counter(), "tp": Counter()}


def _stage(spec: DecoderSpec, local: DecoderSpec) -> DecoderSpec:
    """The decoder with the layers of a stage, whole."""
    return replace(spec, held=local.held)


def _there(work: Work, local: DecoderSpec) -> Work:
    """What of a work's pairs is scored on a stage: all on the last, and none before."""
    return work if local.has_head else replace(work, pairs=0)


def _without_ends(said: Counter[str], spec: DecoderSpec, mesh: Mesh, stage: int, work: Work) -> None:
    """Takes the embeddings' sum from a stage that has none, and where rows are cut, what gathers them for the head."""
    numbers = work.rows * spec.d_model
    if not mesh.cuts_rows:
        said["sum"] -= numbers * FP32 * (stage > 0)
        return
    numbers = -(-work.rows // mesh.tp) * mesh.tp * spec.d_model
    said["scatter"] -= numbers * FP32 * (stage > 0)
    said["gather"] -= numbers * work.n_bytes * (stage + 1 < mesh.pp)

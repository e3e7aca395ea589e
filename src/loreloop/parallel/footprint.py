"""How many bytes a rank of a mesh holds, by part, from a model's configuration alone: nothing is allocated.

The shares are cut by the plans themselves, from tensors on the meta device. Says nothing of what products need for
themselves while they run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from loreloop.model.families.family import WeightNames
from loreloop.model.packed_weights import PackedWeight, packable
from loreloop.model.spec import DecoderSpec
from loreloop.model.weights import Weight, decoder_weights
from loreloop.parallel.activations import kept_a_row
from loreloop.parallel.mesh import Mesh, check_mesh
from loreloop.parallel.shares import Share, share_of
from loreloop.protocol.training import LoraSpec

COMPUTE_BYTES = 2  # bf16
STATE_BYTES = 4  # fp32
# Which weights are packed: routed experts in 4 bits, as some models are published; all that may be; none.
Packing = Literal["experts", "all", "none"]


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank. `experts` are the routed ones, `weights` all others; `adapter` is one adapter's compute copy
    and fp32 master, `moments` and `gradient` are its; `cache` is of so many tokens, `inputs` those of all layers for
    the micro-batches under way, and `layer` what the costliest layer keeps for its way back."""

    experts: int
    weights: int
    adapter: int
    moments: int
    gradient: int
    cache: int
    inputs: int
    layer: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Load:
    """What the ranks hold besides the model: one adapter in training, a cache of so many tokens, and what micro-batches
    of `trained_rows` rows keep, of which a pass has `n_batches`. `recomputed`: only the inputs of layers are kept, and
    one layer's activations at a time are made again."""

    lora: LoraSpec
    cached_tokens: int
    trained_rows: int
    packing: Packing = "experts"
    n_batches: int = 1
    recomputed: bool = True


@dataclass(frozen=True)
class Held:
    """What a rank holds of the base: bytes of routed experts and of all else, and how many numbers these are."""

    experts: int
    others: int
    n_numbers: int


def footprint(spec: DecoderSpec, names: WeightNames, mesh: Mesh, rank: int, load: Load) -> Footprint:
    """What a rank holds of a model with these weights' names. BadRequest where the mesh does not divide it."""
    check_mesh(spec, mesh)
    share = share_of(spec, mesh, rank)
    base = held_weights(share, names, load.packing)
    n_adapter, local = share.layout(load.lora).size, share.local
    inputs, layer = _activations(share, mesh, rank, load)
    return Footprint(
        experts=base.experts,
        weights=base.others,
        adapter=n_adapter * (COMPUTE_BYTES + STATE_BYTES),
        moments=2 * n_adapter * STATE_BYTES,
        gradient=n_adapter * STATE_BYTES,
        cache=load.cached_tokens * len(local.layers) * local.cache.size * COMPUTE_BYTES,
        inputs=inputs,
        layer=layer,
    )


def held_weights(share: Share, names: WeightNames, packing: Packing) -> Held:
    """What a share of the base takes, packed so."""
    n_experts = n_others = n_numbers = 0
    for weight, shape, count in _held(share, names):
        size = torch.Size(shape).numel()
        n_numbers += count * size
        is_expert = weight.role.split(".")[1:2] != [] and weight.role.split(".")[1].isdecimal()
        n_bytes = count * _n_bytes(weight, shape, packs=packing == "all" or (packing == "experts" and is_expert))
        n_experts += n_bytes if is_expert else 0
        n_others += 0 if is_expert else n_bytes
    return Held(n_experts, n_others, n_numbers)


def _held(share: Share, names: WeightNames) -> Iterator[tuple[Weight, tuple[int, ...], int]]:
    """Weights of which the rank has something, the shape of that, and how many are like it: one expert of a layer
    stands for all that are here."""
    whole, moe, n_alike = share.spec, share.spec.moe, 1
    local = share.local  # made anew whenever it is asked for
    if moe and local.moe:
        here = local.moe.here
        n_alike = len(here)
        whole = replace(whole, moe=replace(moe, held=(here.start, here.start + 1)))
    # What a plan takes of a weight depends on its site and shape, and not on which of the layers here it is in.
    known: dict[tuple[str, tuple[int, ...]], tuple[int, ...] | None] = {}
    for weight in _outline(whole, names):
        layer, _, site = weight.role.partition(".")
        if layer.isdecimal() and int(layer) not in local.layers:
            continue
        key = (site or layer, weight.shape)
        if key not in known:
            # Whole on the meta device, where it costs nothing; the plan cuts its shape as it would cut its numbers.
            mine = share.weight(weight.role, torch.empty(weight.shape, device="meta"))
            known[key] = None if mine is None else tuple(mine.shape)
        shape = known[key]
        if shape is not None:
            yield weight, shape, n_alike if site.partition(".")[0].isdecimal() else 1


@functools.lru_cache(maxsize=8)
def _outline(spec: DecoderSpec, names: WeightNames) -> tuple[Weight, ...]:
    """A model's weights; whoever compares layouts asks for the same ones again and again."""
    return tuple(decoder_weights(spec, names))


def _n_bytes(weight: Weight, shape: tuple[int, ...], *, packs: bool) -> int:
    starts = [piece.rows.start for piece in weight.pieces]
    # A share without whole tiles and groups is kept unpacked.
    if packs and weight.bits and packable(weight.shape, starts) and packable(shape) and shape[0]:
        return _packed_bytes(shape, weight.bits)
    return torch.Size(shape).numel() * (STATE_BYTES if weight.fp32 else COMPUTE_BYTES)


@functools.cache
def _packed_bytes(shape: tuple[int, ...], bits: int) -> int:
    """A weight's codes and scales."""
    return PackedWeight.empty(shape, bits, torch.bfloat16, torch.device("meta")).n_bytes


def _activations(share: Share, mesh: Mesh, rank: int, load: Load) -> tuple[int, int]:
    """What all layers keep for the micro-batches under way, and what the one at work has beyond that."""
    local, stage = share.local, mesh.at(rank)["pp"]
    # A stage goes forward with as many micro-batches as there are stages behind it before the first comes back.
    under_way = min(load.n_batches, mesh.pp - stage)
    rows, n_sharing = load.trained_rows, mesh.tp if mesh.cuts_rows else 1
    kept = [rows * kept_a_row(local, load.lora, layer, COMPUTE_BYTES, 1 / n_sharing) for layer in local.layers]
    if load.recomputed:
        return under_way * -(-rows // n_sharing) * len(kept) * local.d_model * STATE_BYTES, round(max(kept))
    return round(under_way * sum(kept) - max(kept)), round(max(kept))

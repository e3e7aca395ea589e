"""How many bytes a rank of a mesh holds, by part, from a model's configuration alone: nothing is allocated.

The shares are cut by the plans themselves, from tensors on the meta device. Says nothing about what a pass needs while
it runs, but for the layers' inputs that training keeps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from loreloop.model.packed_weights import PackedWeight
from loreloop.model.spec import DecoderSpec
from loreloop.model.weights import Weight
from loreloop.parallel.mesh import Mesh, check_mesh
from loreloop.parallel.shares import share_of
from loreloop.protocol.training import LoraSpec

COMPUTE_BYTES = 2  # bf16
STATE_BYTES = 4  # fp32


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank. `experts` are packed in 4 bits, `weights` all others in bf16; `adapter` is one adapter's
    compute copy and fp32 master, `moments` and `gradient` are its; `cache` and `inputs` are of so many tokens."""

    experts: int
    weights: int
    adapter: int
    moments: int
    gradient: int
    cache: int
    inputs: int

    @property
    def total(self) -> int:
        """All parts."""
        return self.experts + self.weights + self.adapter + self.moments + self.gradient + self.cache + self.inputs


@dataclass(frozen=True)
class Load:
    """What the ranks hold besides the model: one adapter in training, a cache of so many tokens, and the inputs of all
    layers for a micro-batch of so many rows."""

    lora: LoraSpec
    cached_tokens: int
    trained_rows: int


def footprint(spec: DecoderSpec, weights: Iterable[Weight], mesh: Mesh, rank: int, load: Load) -> Footprint:
    """What a rank holds of the model whose weights are `weights` (`model/weights.py`). BadRequest where the mesh does
    not divide it."""
    check_mesh(spec, mesh)
    share = share_of(spec, mesh, rank)
    n_packed = n_plain = 0
    for weight in weights:
        # Whole on the meta device, where it costs nothing; the plan then cuts its shape as it would cut its numbers.
        mine = share.weight(weight.role, torch.empty(weight.shape, device="meta"))
        if mine is None:
            continue
        if weight.bits == 4 and weight.role.split(".")[1].isdecimal():
            n_packed += _packed_bytes(tuple(mine.shape))
        else:
            n_plain += mine.shape.numel() * (STATE_BYTES if weight.fp32 else COMPUTE_BYTES)
    n_adapter, local = share.layout(load.lora).size, share.local
    n_layers = len(local.layers)  # those that lie here: a stage has some
    return Footprint(
        experts=n_packed,
        weights=n_plain,
        adapter=n_adapter * (COMPUTE_BYTES + STATE_BYTES),
        moments=2 * n_adapter * STATE_BYTES,
        gradient=n_adapter * STATE_BYTES,
        cache=load.cached_tokens * n_layers * local.cache.size * COMPUTE_BYTES,
        inputs=load.trained_rows * n_layers * local.d_model * COMPUTE_BYTES,
    )


@functools.cache
def _packed_bytes(shape: tuple[int, ...]) -> int:
    """A weight's codes and scales. A model has thousands of one shape."""
    return PackedWeight.empty(shape, 4, torch.bfloat16, torch.device("meta")).n_bytes

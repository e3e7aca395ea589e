"""A decoder of which each rank holds a share: built as ever from the share's spec, its layers' parts then wrapped.

Knows no adapters' numbers and no files.

Legend: T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch import distributed as dist

from loreloop.model.assemble import Parts, assemble
from loreloop.model.decoder import Attend, Decoder, Mixer
from loreloop.model.linear import Products
from loreloop.model.lora import Adapters
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.rope import Rope
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.collectives import enter, leave
from loreloop.parallel.mesh import check_mesh
from loreloop.parallel.place import Place
from loreloop.parallel.tensor_cut import TensorCut


@dataclass(frozen=True)
class CutMixer:
    """A part of a layer of which each rank computes a share of the sum."""

    share: Mixer
    group: dist.ProcessGroup

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor:
        return leave(self.share(enter(x_TD, self.group), rope, attend, lora), self.group)


def decoder_of(
    spec: DecoderSpec,
    weights: Mapping[str, Tensor | PackedWeight],
    dtype: torch.dtype,
    products: Products,
    place: Place,
) -> Decoder:
    """The share of a decoder that belongs to a place, from its whole weights by role. BadRequest where it cannot be cut
    so."""
    if place.group is None:
        return assemble(Parts(spec, weights, dtype, products))
    check_mesh(spec, place.mesh)
    cut = TensorCut(spec, place.rank, place.mesh.tp)
    decoder = assemble(Parts(cut.local, {role: cut.weight(role, w) for role, w in weights.items()}, dtype, products))
    decoder.layers = [
        replace(
            layer,
            attention=CutMixer(layer.attention, place.group),
            feed_forward=CutMixer(layer.feed_forward, place.group),
        )
        for layer in decoder.layers
    ]
    return decoder

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
from loreloop.model.decoder import Attend, Decoder, Layer, Mixer
from loreloop.model.linear import Products
from loreloop.model.lora import Adapters
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.rope import Rope
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.collectives import enter, leave
from loreloop.parallel.mesh import check_mesh
from loreloop.parallel.place import Place
from loreloop.parallel.shares import share_of


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
    share = share_of(spec, place.mesh, place.rank)
    held = {role: mine for role, weight in weights.items() if (mine := share.weight(role, weight)) is not None}
    decoder = assemble(Parts(share.local, held, dtype, products))
    if tensor_group := place.groups.get("tp"):
        decoder.layers = [_cut_layer(layer, tensor_group) for layer in decoder.layers]
    return decoder


def _cut_layer(layer: Layer, group: dist.ProcessGroup) -> Layer:
    attention, feed_forward = CutMixer(layer.attention, group), CutMixer(layer.feed_forward, group)
    return replace(layer, attention=attention, feed_forward=feed_forward)

"""A decoder of which each rank holds a share: built as ever from the share's spec, its parts then taught to speak.

Knows no adapters' numbers and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch import distributed as dist

from loreloop.model.assemble import Parts, assemble
from loreloop.model.decoder import Decoder, Layer
from loreloop.model.linear import Products
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.routed_feed_forward import RoutedFeedForward
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.cut import Weight
from loreloop.parallel.mesh import check_mesh
from loreloop.parallel.place import Place
from loreloop.parallel.shares import share_of
from loreloop.parallel.spread_experts import SpreadExperts
from loreloop.parallel.tensor_parts import speak_in_group


def holding(place: Place) -> Callable[[DecoderSpec], Callable[[str, Weight], Weight | None]] | None:
    """For a decoder, what a place holds of each of its weights by role; None in a mesh of one, where that is all.
    BadRequest where the decoder cannot be cut so."""
    if place.group is None:
        return None

    def held(spec: DecoderSpec) -> Callable[[str, Weight], Weight | None]:
        check_mesh(spec, place.mesh)
        return share_of(spec, place.mesh, place.rank).weight

    return held


def decoder_of(
    spec: DecoderSpec,
    weights: Mapping[str, Tensor | PackedWeight],
    dtype: torch.dtype,
    products: Products,
    place: Place,
) -> Decoder:
    """The share of the decoder `spec` that belongs to a place, from the weights that the place holds (`holding`), by
    role. BadRequest where it cannot be cut so."""
    if place.group is None:
        return assemble(Parts(spec, weights, dtype, products))
    check_mesh(spec, place.mesh)
    share = share_of(spec, place.mesh, place.rank)
    decoder = assemble(Parts(share.local, weights, dtype, products))
    if expert_group := place.groups.get("ep"):
        decoder.layers = [_spread_layer(layer, expert_group) for layer in decoder.layers]
    if tensor_group := place.groups.get("tp"):
        speak_in_group(decoder, spec, tensor_group)
    return decoder


def _spread_layer(layer: Layer, group: dist.ProcessGroup) -> Layer:
    if not isinstance(layer.feed_forward, RoutedFeedForward):
        return layer
    return replace(layer, feed_forward=SpreadExperts(layer.feed_forward, group))

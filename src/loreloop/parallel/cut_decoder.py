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
from loreloop.model.decoder import Attend, Decoder, GroupedQueryAttention, Layer, Mixer, RmsNorm
from loreloop.model.linear import Products
from loreloop.model.lora import Adapters
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.rope import Rope
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.collectives import enter, leave
from loreloop.parallel.mesh import check_mesh
from loreloop.parallel.place import Place
from loreloop.parallel.shares import share_of
from loreloop.parallel.vocabulary import CutVocabulary, vocabulary_borders


@dataclass(frozen=True)
class CutMixer:
    """A part of a layer of which each rank computes a share of the sum."""

    share: Mixer
    group: dist.ProcessGroup

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor:
        return leave(self.share(enter(x_TD, self.group), rope, attend, lora), self.group)


@dataclass(frozen=True)
class CutNorm:
    """A norm over all heads side by side, of which a rank has some; `copies` ranks have the same ones. `width` is that
    of all heads."""

    norm: RmsNorm
    width: int
    copies: int
    group: dist.ProcessGroup

    def __call__(self, x_TE: Tensor) -> Tensor:
        x = x_TE.float()
        # The sum serves every rank's heads, so its gradient is the sum of what all of them send back.
        square_T1 = enter(leave(x.square().sum(-1, keepdim=True), self.group), self.group) / self.copies
        return (x * torch.rsqrt(square_T1 / self.width + self.norm.eps) * self.norm.weight_D).to(self.norm.dtype)


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
    # A packed weight that had to be unpacked for its cut comes in bf16.
    for role, mine in held.items():
        if isinstance(mine, Tensor) and isinstance(weights[role], PackedWeight):
            held[role] = mine.to(dtype)
    decoder = assemble(Parts(share.local, held, dtype, products))
    if tensor_group := place.groups.get("tp"):
        _cut_by_tensors(decoder, spec, tensor_group)
    return decoder


def _cut_by_tensors(decoder: Decoder, spec: DecoderSpec, group: dist.ProcessGroup) -> None:
    """Lets a rank's decoder speak with the others of its tensor group; `spec` is that of the whole decoder."""
    decoder.layers = [_cut_layer(layer, spec, group) for layer in decoder.layers]
    borders = vocabulary_borders(spec.vocab_size, group.size())
    decoder.vocabulary = CutVocabulary(borders, group.rank(), group)


def _cut_layer(layer: Layer, spec: DecoderSpec, group: dist.ProcessGroup) -> Layer:
    attention = layer.attention
    if isinstance(attention, GroupedQueryAttention) and attention.parts.norms and attention.parts.whole:
        q_norm, k_norm = attention.parts.norms
        assert isinstance(q_norm, RmsNorm)
        assert isinstance(k_norm, RmsNorm)
        copies = max(1, group.size() // spec.n_kv_heads)
        norms = CutNorm(q_norm, spec.d_q, 1, group), CutNorm(k_norm, spec.d_kv, copies, group)
        attention = GroupedQueryAttention(attention.layer, attention.spec, replace(attention.parts, norms=norms))
    return replace(layer, attention=CutMixer(attention, group), feed_forward=CutMixer(layer.feed_forward, group))

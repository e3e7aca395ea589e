"""The parts of a layer whose heads or widths are cut, as each rank of a tensor group computes them.

Knows neither weights nor adapters' numbers.

Legend: T tokens, D model width, E all heads of a rank side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch import distributed as dist

from loreloop.model.decoder import Attend, Decoder, GroupedQueryAttention, Layer, Mixer, RmsNorm
from loreloop.model.lora import Adapters
from loreloop.model.rope import Rope
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.collectives import enter, leave
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


def speak_in_group(decoder: Decoder, spec: DecoderSpec, group: dist.ProcessGroup) -> None:
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

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
from loreloop.model.rope import Rope
from loreloop.parallel.collectives import enter, leave
from loreloop.parallel.tensor_cut import TensorCut


@dataclass(frozen=True)
class CutMixer:
    """A part of a layer of which each rank computes a share of the sum."""

    share: Mixer
    group: dist.ProcessGroup

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor:
        return leave(self.share(enter(x_TD, self.group), rope, attend, lora), self.group)


def cut_decoder(
    cut: TensorCut, weights: Mapping[str, Tensor], dtype: torch.dtype, products: Products, group: dist.ProcessGroup
) -> Decoder:
    """The share of a decoder whose whole weights are given by role."""
    shares = {role: cut.weight(role, weight) for role, weight in weights.items()}
    decoder = assemble(Parts(cut.local, shares, dtype, products))
    decoder.layers = [
        replace(
            layer,
            attention=CutMixer(layer.attention, group),
            feed_forward=CutMixer(layer.feed_forward, group),
        )
        for layer in decoder.layers
    ]
    return decoder

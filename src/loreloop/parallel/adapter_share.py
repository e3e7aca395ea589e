"""An adapter as a rank holds it, and as it is published: whole. In a mesh of one both are the same.

Knows neither optimizers nor files.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.collectives import summed
from loreloop.parallel.place import ALONE, Place
from loreloop.parallel.tensor_cut import TensorCut
from loreloop.protocol.training import LoraSpec


class AdapterShare:
    """The share of one process of an adapter for the decoder `spec`; `layout` is that of its numbers."""

    def __init__(self, spec: DecoderSpec, lora: LoraSpec, place: Place = ALONE) -> None:
        self.place, self.whole_layout = place, LoraLayout(spec, lora)
        self.cut = TensorCut(spec, place.rank, place.mesh.tp)
        self.layout = LoraLayout(self.cut.local, lora) if place.n_ranks > 1 else self.whole_layout

    def take(self, whole: Tensor) -> Tensor:
        """The rank's numbers of a whole adapter's, both flat."""
        if self.place.n_ranks == 1:
            return whole
        mine = AdapterView(self.layout, whole.new_empty(self.layout.size))
        self.cut.adapter(AdapterView(self.whole_layout, whole), mine)
        return mine.flat

    def whole(self, mine: Tensor) -> AdapterView:
        """The adapter of which every rank gives its numbers."""
        if self.place.n_ranks == 1:
            return AdapterView(self.layout, mine)
        flat = mine.new_empty(self.whole_layout.size)
        for rank, numbers in enumerate(self.place.gathered(mine)):
            flat[TensorCut(self.cut.spec, rank, self.cut.size).numbers(self.whole_layout, self.layout)] = numbers
        return AdapterView(self.whole_layout, flat)

    def sum_up(self, gradient: AdapterView) -> None:
        """Makes the gradients of copied matrices whole, of which each rank has gathered a part."""
        if self.place.group is not None:
            for matrix in self.cut.summed(gradient):
                matrix.copy_(summed(matrix, self.place.group))

    def take_gradient(self, whole: Tensor) -> Tensor:
        """The rank's part of a whole gradient, as if it had gathered that: parts of copied matrices add up."""
        mine = self.take(whole)
        if not self.place.is_first:
            for matrix in self.cut.summed(AdapterView(self.layout, mine)):
                matrix.zero_()
        return mine

    def whole_gradient(self, mine: Tensor) -> AdapterView:
        """The gradient of which every rank has gathered its part, and goes on gathering."""
        if self.place.n_ranks == 1:
            return AdapterView(self.layout, mine)
        summed_up = AdapterView(self.layout, mine.clone())
        self.sum_up(summed_up)
        return self.whole(summed_up.flat)

    @functools.cached_property
    def counted(self) -> Tensor | None:
        """Which of the rank's numbers it counts where each number of the whole is to count once, (size,) bool; None:
        all."""
        if self.place.is_first:
            return None
        counted = AdapterView(self.layout, torch.ones(self.layout.size, dtype=torch.bool))
        everywhere = [key for key in self.layout.places if not self.cut.cuts(key[1])]
        for matrix in (
            *(m for key in everywhere for m in (counted.a(*key), *counted.b(*key))),
            *self.cut.summed(counted),
        ):
            matrix.fill_(False)
        return counted.flat

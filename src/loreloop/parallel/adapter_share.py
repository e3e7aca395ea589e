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
from loreloop.parallel.shares import share_of
from loreloop.protocol.training import LoraSpec


class AdapterShare:
    """The share of one process of an adapter for the decoder `spec`; `layout` is that of its numbers."""

    def __init__(self, spec: DecoderSpec, lora: LoraSpec, place: Place = ALONE) -> None:
        self.place, self.whole_layout = place, LoraLayout(spec, lora)
        self.share = share_of(spec, place.mesh, place.rank)
        self.layout = self.share.layout(lora) if place.n_ranks > 1 else self.whole_layout

    def take(self, whole: Tensor) -> Tensor:
        """The rank's numbers of a whole adapter's, both flat."""
        return self.share.take(AdapterView(self.whole_layout, whole)).flat

    def whole(self, mine: Tensor) -> AdapterView:
        """The adapter of which every rank gives its numbers."""
        if self.place.n_ranks == 1:
            return AdapterView(self.layout, mine)
        flat = mine.new_empty(self.whole_layout.size)
        spec, lora, mesh = self.share.spec, self.whole_layout.lora, self.place.mesh
        places = [share_of(spec, mesh, rank).numbers(lora) for rank in range(mesh.n_ranks)]
        for at, numbers in zip(places, self.place.gathered(mine, [len(at) for at in places]), strict=True):
            flat[at] = numbers
        return AdapterView(self.whole_layout, flat)

    def sum_up(self, gradient: AdapterView) -> None:
        """Makes the gradients of copied matrices whole, of which each rank has gathered a part."""
        for axis, group in self.place.groups.items():
            for matrix in self.share.matrices(gradient, axis, "partial"):
                matrix.copy_(summed(matrix, group))

    def take_gradient(self, whole: Tensor) -> Tensor:
        """The rank's part of a whole gradient, as if it had gathered that: parts of copied matrices add up."""
        mine = self.take(whole)
        for axis in self.place.groups:
            if self.place.along(axis):
                for matrix in self.share.matrices(AdapterView(self.layout, mine), axis, "partial"):
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
        for axis in self.place.groups:
            if self.place.along(axis):
                for held in ("partial", "copied"):
                    for matrix in self.share.matrices(counted, axis, held):
                        matrix.fill_(False)
        return counted.flat

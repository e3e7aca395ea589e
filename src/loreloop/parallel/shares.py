"""A rank's share of a decoder and of its adapters in a mesh: what is left when every axis has cut its part.

Knows no processes: any rank's share can be computed on any rank, which is how checkpoints are put together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.model.lora_region import WHOLE, Factor, Matrix, Region
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.cut import Cut, Held, Shared, Weight
from loreloop.parallel.expert_cut import ExpertCut
from loreloop.parallel.mesh import AXES, Axis, Mesh
from loreloop.parallel.pipeline_cut import PipelineCut
from loreloop.parallel.tensor_cut import TensorCut
from loreloop.protocol.training import LoraSpec

# How an axis cuts a decoder, for a rank that stands somewhere along it among so many.
PLANS: dict[Axis, Callable[[DecoderSpec, int, int], Cut]] = {"pp": PipelineCut, "ep": ExpertCut, "tp": TensorCut}


@dataclass(frozen=True)
class Share:
    """What `rank` of a mesh holds of the decoder `spec`; `cuts` are made one after another, each in what the one before
    it has left."""

    spec: DecoderSpec
    cuts: tuple[Cut, ...]

    @property
    def local(self) -> DecoderSpec:
        """The decoder that the rank holds."""
        return self.cuts[-1].local if self.cuts else self.spec

    def layout(self, lora: LoraSpec) -> LoraLayout:
        """Where the numbers of the rank's adapter lie."""
        return LoraLayout(self.local, lora)

    def weight(self, role: str, weight: Weight) -> Weight | None:
        """The rank's share of a weight of the decoder, by its role; None where it has none of it."""
        held: Weight | None = weight
        for cut in self.cuts:
            if held is None:
                return None
            held = cut.weight(role, held)
        return held

    def region(self, matrix: Matrix, whole: LoraLayout) -> Region:
        """Which part the rank has of a matrix of the adapter, at a site that lies here."""
        return functools.reduce(Region.also, (cut.region(matrix, whole) for cut in self.cuts), WHOLE)

    def take(self, whole: AdapterView) -> AdapterView:
        """The rank's adapter of a whole one."""
        layout = self.layout(whole.layout.lora)
        mine = AdapterView(layout, whole.flat.new_empty(layout.size))
        for key in layout.places:
            for matrix in layout.matrices(*key):
                self.region(matrix, whole.layout).take(whole.at(matrix), mine.at(matrix))
        return mine

    def numbers(self, lora: LoraSpec) -> Tensor:
        """For each number of the rank's adapter its place in the whole one, (size,) int64."""
        layout = LoraLayout(self.spec, lora)
        return self.take(AdapterView(layout, torch.arange(layout.size))).flat

    def matrices(self, mine: AdapterView, axis: Axis, held: Held) -> Iterator[Tensor]:
        """Those of the rank's adapter that the ranks of an axis hold so."""
        cut = self._along(axis)
        for layer, site in mine.layout.places:
            by_factor: dict[Factor, tuple[Tensor, ...]] = {"a": (mine.a(layer, site),), "b": mine.b(layer, site)}
            for factor, matrices in by_factor.items():
                if cut.held(site, factor, mine.layout.lora.experts) == held:
                    yield from matrices

    def shared(self, mine: AdapterView, axis: Axis) -> Iterator[Shared]:
        """Rows of the rank's cut matrices that some of the ranks of an axis hold together."""
        return self._along(axis).shared(mine)

    def _along(self, axis: Axis) -> Cut:
        (cut,) = [cut for cut in self.cuts if cut.axis == axis]
        return cut


def share_of(spec: DecoderSpec, mesh: Mesh, rank: int) -> Share:
    """The share of a rank."""
    at, cuts = mesh.at(rank), list[Cut]()
    for axis in AXES:
        if mesh.sizes[axis] > 1:
            cuts.append(PLANS[axis](cuts[-1].local if cuts else spec, at[axis], mesh.sizes[axis]))
    return Share(spec, tuple(cuts))

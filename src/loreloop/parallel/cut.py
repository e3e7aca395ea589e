"""What a plan says about one axis of a mesh: which numbers of a decoder and of its adapters a rank holds.

A plan cuts a decoder's spec, its weights and its adapters; several plans cut one after another (`shares.py`). Knows no
processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.model.lora_region import Factor, Matrix, Region
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.mesh import Axis
from loreloop.protocol.training import ExpertForm

Weight = Tensor | PackedWeight
# How the ranks of an axis hold a matrix of an adapter: each a share of its own; all the same, of whose gradient each
# gathers a part; all the same, of whose gradient each gathers all.
Held = Literal["cut", "partial", "copied"]


@dataclass(frozen=True)
class Shared:
    """Rows of a matrix that is otherwise cut, which `copies` neighbouring ranks hold; each gathers a part of their
    gradient."""

    rows: Tensor
    copies: int


def without_rows(weight: Weight) -> Tensor:
    """What stands for a matrix that lies elsewhere: as many inputs, and no outputs."""
    if isinstance(weight, PackedWeight):
        return torch.empty(0, weight.shape[1], dtype=torch.bfloat16, device=weight.codes.codes.device)
    # By an index, which copies: of a view the whole would stay in memory. It leaves its trace in an outline, so that
    # none of the matrix is read from its file.
    return weight[torch.arange(0)]


class Cut(Protocol):
    """One rank's share of a decoder along an axis."""

    @property
    def axis(self) -> Axis:
        """Along which the ranks share."""
        ...

    @property
    def local(self) -> DecoderSpec:
        """The decoder that the rank holds."""
        ...

    def weight(self, role: str, weight: Weight) -> Weight | None:
        """The rank's share of a weight, a bias or a vector of the decoder, by its role (`model/weights.py`); None where
        it has none of it."""
        ...

    def region(self, matrix: Matrix, whole: LoraLayout) -> Region:
        """Which part the rank has of a matrix at a site that lies here; each axis cuts along dimensions of its own.
        `whole` is the layout of all of the adapter."""
        ...

    def held(self, site: str, factor: Factor, form: ExpertForm) -> Held:
        """How the ranks hold a matrix of the adapter at a site, where experts' adapters have this form."""
        ...

    def shared(self, mine: AdapterView) -> Iterator[Shared]:
        """Views of those rows of a rank's cut matrices that some of the ranks hold together."""
        ...

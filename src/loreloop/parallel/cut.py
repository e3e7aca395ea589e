"""What a plan says about one axis of a mesh: which numbers of a decoder and of its adapters a rank holds.

A plan cuts a decoder's spec, its weights and its adapters; several plans cut one after another (`shares.py`). Knows no
processes.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.mesh import Axis
from loreloop.protocol.training import LoraSpec

Weight = Tensor | PackedWeight
# How the ranks of an axis hold a matrix of an adapter: each a share of its own; all the same, of whose gradient each
# gathers a part; all the same, of whose gradient each gathers all.
Held = Literal["cut", "partial", "copied"]
Factor = Literal["a", "b"]


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

    def layout(self, lora: LoraSpec) -> LoraLayout:
        """Where the numbers of the rank's adapter lie."""
        ...

    def weight(self, role: str, weight: Weight) -> Weight | None:
        """The rank's share of a weight, a bias or a vector of the decoder, by its role (`model/weights.py`); None where
        it has none of it."""
        ...

    def adapter(self, view: AdapterView, local: AdapterView) -> None:
        """Fills a rank's adapter from a whole one."""
        ...

    def held(self, site: str, factor: Factor) -> Held:
        """How the ranks hold a matrix of the adapter at a site."""
        ...

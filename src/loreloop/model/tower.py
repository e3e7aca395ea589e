"""A vision tower as the engine sees it: pixels in, what enters the decoder out. Families build theirs.

Legend: C colours, H rows, W columns of pixels; N tokens of an image, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from loreloop.protocol.images import ImageRules


@dataclass(frozen=True)
class ImageFeatures:
    """`additions` go onto the residual stream behind each of the decoder's first layers."""

    embedding_ND: Tensor
    additions: tuple[Tensor, ...] = ()

    @property
    def n_bytes(self) -> int:
        """The memory that the features take, by which a cache of them is bounded."""
        return sum(t.numel() * t.element_size() for t in (self.embedding_ND, *self.additions))


class Tower(Protocol):
    """`parts` hold the weights; their names are those of the published folder without what stands before them."""

    @property
    def parts(self) -> nn.ModuleDict:
        """The modules of the tower, frozen; `state_dict` names the weights that a folder must have."""
        ...

    def __call__(self, pixels_CHW: Tensor) -> ImageFeatures: ...


@dataclass(frozen=True)
class Vision:
    """What makes a decoder see."""

    rules: ImageRules
    tower: Tower

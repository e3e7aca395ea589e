"""A vision tower as the engine sees it: pixels in, what enters the decoder out. Families build theirs.

Legend: C colours, H rows, W columns of pixels; N tokens of an image, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
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


VISION = "vision."


def own_name(name: str) -> str:
    """A published tensor's name as the decoder's families know it; a tower's begins with `vision.`.

    Folders of one model differ in what stands before the names, by the age of what wrote them.
    """
    # Newer folders put the decoder and the tower below one common `model.`, older ones do not.
    if name.startswith(BESIDE):
        name = name.removeprefix("model.")
    return next((own + name.removeprefix(theirs) for theirs, own in PREFIXES if name.startswith(theirs)), name)


BESIDE = ("model.vision_tower.", "model.multi_modal_projector.", "model.visual.", "model.language_model.")
PREFIXES: Sequence[tuple[str, str]] = (
    ("vision_tower.", "vision.tower."),
    ("multi_modal_projector.", "vision.projector."),
    ("visual.", "vision.tower."),
    # The first prefix that fits counts, so longer ones stand before those that they begin with.
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.", "model."),
)

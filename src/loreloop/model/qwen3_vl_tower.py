"""Qwen3-VL's tower, which adds to the decoder's first layers as well.

Legend: C colours, H rows, W columns of pixels, P patches, X numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from loreloop.model.tower import ImageFeatures, Tower


def qwen3_vl_tower(config: Mapping[str, Any]) -> Tower:
    """transformers' tower, with weights that are not yet filled in."""
    # Imported here, since transformers takes seconds to load and only models with a tower need it.
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    vision = Qwen3VLVisionConfig(**config["vision_config"])
    return Qwen3VLTower(Qwen3VLVisionModel._from_config(vision, attn_implementation="sdpa"), vision)


class Qwen3VLTower:
    """Pixels as rows of patches, the patches of one token beside each other; a still image is every frame."""

    def __init__(self, tower: nn.Module, vision: Any) -> None:
        self.parts = nn.ModuleDict({"tower": tower})
        self.patch, self.merge = vision.patch_size, vision.spatial_merge_size
        self.frames = vision.temporal_patch_size

    def __call__(self, pixels_CHW: Tensor) -> ImageFeatures:
        n_colours, height, width = pixels_CHW.shape
        rows, columns = height // self.patch, width // self.patch
        merged = (rows // self.merge, self.merge, self.patch, columns // self.merge, self.merge, self.patch)
        # (C, rows, merged row, pixel row, columns, merged column, pixel column)
        patches = pixels_CHW.reshape(n_colours, *merged).permute(1, 4, 2, 5, 0, 3, 6)
        patches_PX = patches.unsqueeze(5).expand(*(-1,) * 5, self.frames, -1, -1).reshape(rows * columns, -1)
        # One frame: the tower knows videos, and an image is a video of one temporal patch.
        grid = torch.tensor([[1, rows, columns]], device=pixels_CHW.device)
        seen = self.parts["tower"](patches_PX, grid_thw=grid, return_dict=True)
        return ImageFeatures(seen.pooler_output, tuple(seen.deepstack_features))

"""Qwen3-VL, dense: Qwen3 with positions of three axes, and a tower that adds to the first layers as well.

An image is a token for every square of 2 × 2 patches of its resized pixels.

Legend: C colours, H rows, W columns of pixels, P patches, X numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from loreloop.model.attention_spec import as_settings
from loreloop.model.families.family import WeightNames, rope_settings
from loreloop.model.families.qwen3 import Qwen3
from loreloop.model.spec import DecoderSpec
from loreloop.model.tower import ImageFeatures, Tower
from loreloop.protocol.images import ImageRules, SmartGrid

SECTIONS = (24, 20, 20)
MIN_PIXELS, MAX_PIXELS = 256 * 256, 4096 * 4096
HALF = (0.5, 0.5, 0.5)


class Qwen3VL:
    """Qwen3 with images, whose positions have three axes."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The text part's decoder, with the sections of its rotary embedding."""
        return seeing(Qwen3().spec(text_config(config)), config, "qwen3_vl")

    def image_rules(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageRules:
        """A grid that follows the image's own shape within a least and a largest number of pixels."""
        vision = as_settings("vision_config", config["vision_config"])
        size = as_settings("size", processor.get("size") or {})
        return ImageRules(
            placeholder=config.get("image_token_id", 151655),
            grid=SmartGrid(
                vision.get("patch_size", 16) * vision.get("spatial_merge_size", 2),
                # The processor's files have either pair of names for the same two bounds, in pixels and not in sides.
                processor.get("min_pixels") or size.get("shortest_edge", MIN_PIXELS),
                processor.get("max_pixels") or size.get("longest_edge", MAX_PIXELS),
            ),
            multi_axis=True,
            mean=tuple(processor.get("image_mean") or HALF),
            std=tuple(processor.get("image_std") or HALF),
            resample=processor.get("resample", 3),
            rescale=processor.get("rescale_factor", 1 / 255),
        )

    def tower(self, config: Mapping[str, Any]) -> Tower:
        """transformers' tower, with weights that are not yet filled in."""
        # Imported here, since transformers takes seconds to load and only models with a tower need it.
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

        vision = Qwen3VLVisionConfig(**config["vision_config"])
        return Qwen3VLTower(Qwen3VLVisionModel._from_config(vision, attn_implementation="sdpa"), vision)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text part's configuration, with what the whole model's says of words."""
    text = as_settings("text_config", config["text_config"])
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    eos = config.get("eos_token_id") or text.get("eos_token_id")
    # 128 is this family's head width, which its configurations may leave out; one in the file goes before it.
    return {"head_dim": 128, **text, "tie_word_embeddings": tied, "eos_token_id": eos}


def seeing(spec: DecoderSpec, config: Mapping[str, Any], family: str) -> DecoderSpec:
    """A text decoder's spec with rope's three axes."""
    rope = rope_settings(as_settings("text_config", config["text_config"]))
    sections = tuple(rope.get("mrope_section") or SECTIONS)
    return replace(spec, family=family, module="model.language_model", rope=replace(spec.rope, sections=sections))


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

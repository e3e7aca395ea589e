"""Qwen3-VL, dense: Qwen3 with positions of three axes, and a tower that adds to the first layers as well.

An image is a token for every square of 2 × 2 patches of its resized pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.attention_spec import as_settings
from loreloop.model.families.family import WeightNames, rope_settings
from loreloop.model.families.qwen3 import Qwen3
from loreloop.model.spec import DecoderSpec
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

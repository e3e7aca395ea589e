"""LLaVA: any plain decoder of this table behind a CLIP or SigLIP tower and two linear maps.

An image is always as many tokens; they have ordinary positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.attention_spec import as_settings
from loreloop.model.families.family import Family, WeightNames
from loreloop.model.families.llama import Llama
from loreloop.model.families.qwen2 import Qwen2
from loreloop.model.families.qwen3 import Qwen3
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.images import CLIP_MEAN, CLIP_STD, FixedGrid, ImageRules

TEXT_FAMILIES: Mapping[str, Family] = {"llama": Llama(), "qwen2": Qwen2(), "qwen3": Qwen3()}
# What published text configurations leave out, because it is Llama's own default.
LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
TOWERS = ("clip_vision_model", "siglip_vision_model")


class Llava:
    """A text family of this package behind a CLIP or SigLIP tower."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The text part's decoder. BadRequest where its family is not supported behind a tower."""
        text = {"model_type": "llama", **config["text_config"]}
        if text["model_type"] not in TEXT_FAMILIES:
            raise BadRequest(f"This llava model's text part is {text['model_type']!r}, which is not supported.")
        # Published folders say it in either part.
        tied = config.get("tie_word_embeddings") or text.get("tie_word_embeddings", False)
        spec = TEXT_FAMILIES[text["model_type"]].spec(
            # Settings that stand in the file go before the defaults; those of the whole model go before both.
            (LLAMA if text["model_type"] == "llama" else {})
            | text
            | {"tie_word_embeddings": tied, "eos_token_id": config.get("eos_token_id") or text.get("eos_token_id")}
        )
        return replace(spec, family="llava", module="model.language_model")

    def image_rules(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageRules:
        """A fixed grid: every image becomes the tower's square and the same number of tokens. BadRequest where the
        processor makes images that the tower does not take."""
        vision = as_settings("vision_config", config["vision_config"])
        kind = vision.get("model_type")
        if kind not in TOWERS:
            raise BadRequest(f"This llava model's vision tower is {kind!r}; {' and '.join(TOWERS)} are supported.")
        side = vision["image_size"]
        size, crop = (as_settings(name, processor.get(name) or {}) for name in ("size", "crop_size"))
        width, height = (crop or size).get("width", side), (crop or size).get("height", side)
        # Images are first scaled to this shorter side and then cropped; without a crop they are scaled to the square
        # itself.
        shorter = size.get("shortest_edge") if processor.get("do_center_crop", "shortest_edge" in size) else None
        if (width, height) != (side, side) or (shorter or side) < side:
            raise BadRequest(
                f"This llava model's images become {width} × {height} pixels (shorter side {shorter}); its "
                f"vision tower takes {side} × {side}."
            )
        n_patches = (width // vision["patch_size"]) * (height // vision["patch_size"])
        # CLIP puts a class token before the patches, which the strategy "default" leaves out again.
        n_tokens = n_patches + (kind == "clip_vision_model") - (feature_strategy(config) == "default")
        return ImageRules(
            placeholder=config.get("image_token_index", config.get("image_token_id", 32000)),
            grid=FixedGrid(width, height, n_tokens, shorter),
            mean=tuple(processor.get("image_mean") or CLIP_MEAN),
            std=tuple(processor.get("image_std") or CLIP_STD),
            resample=processor.get("resample", 3),
            rescale=processor.get("rescale_factor", 1 / 255),
        )


def feature_strategy(config: Mapping[str, Any]) -> str:
    """Which of the tower's tokens become an image's: "default" leaves out the class token."""
    return str(config.get("vision_feature_select_strategy", "default"))

"""Gemma 2 and 3, text: norms before and after each part, windows in turns, GELU gates, scaled embeddings.

Gemma 2 bounds scores and logits; Gemma 3 norms queries and keys, and turns its layers with a window by another base.
Configuration and names only. Images are not taken: a tower in the folder is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.attention_spec import as_settings
from loreloop.model.families.family import (
    WeightNames,
    biased,
    dense_spec,
    layer_windows,
    ropes_by_layer_kind,
)
from loreloop.model.spec import DecoderSpec, ScaleSpec
from loreloop.protocol.errors import BadRequest

NAMES = WeightNames(
    feed_forward_norm="model.layers.{layer}.pre_feedforward_layernorm.weight",
    ignored=("model.vision_tower.", "model.multi_modal_projector.", "vision_tower.", "multi_modal_projector."),
)
# What published configurations leave out of their text part.
GEMMA3 = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
THETA, LOCAL_THETA = 1_000_000.0, 10_000.0  # of Gemma 3's two kinds of layers, where the configuration names none


class Gemma2:
    """Gemma 2's decoder."""

    names = NAMES

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration. BadRequest where attention also looks ahead."""
        return _common(config, "gemma2", period=2)


class Gemma3:
    """Gemma 3's text decoder, alone or as the text part of a model that sees."""

    names = NAMES

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration, or of its text part. BadRequest where attention also looks ahead."""
        text, module = config, "model"
        if "text_config" in config:
            stated = as_settings("text_config", config["text_config"])
            text = {**stated, "eos_token_id": config.get("eos_token_id") or stated.get("eos_token_id")}
            module = "model.language_model"
        text = {**GEMMA3, **text}
        ordinary, local = ropes_by_layer_kind(text, THETA, float(text.get("rope_local_base_freq") or LOCAL_THETA))
        period = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern") or 6
        plain = {**text, "rope_parameters": None, "rope_scaling": None}
        spec = _common(plain, str(config["model_type"]), period=period)
        attention = replace(spec.attention, local_rope=local)
        return replace(spec, rope=ordinary, qk_norm="head", attention=attention, module=module)


def _common(config: Mapping[str, Any], family: str, *, period: int) -> DecoderSpec:
    if config.get("use_bidirectional_attention"):
        raise BadRequest(f"This {family} model's tokens also see those after them, which is not supported.")
    activation = config.get("hidden_activation") or "gelu_pytorch_tanh"
    # Published configurations tie the head to the embedding by saying nothing of it.
    tied = config.get("tie_word_embeddings", True)
    base = {**config, "hidden_act": activation, "tie_word_embeddings": tied}
    spec = biased(dense_spec(base, family), config)
    windows = layer_windows(config, lambda layer: (layer + 1) % period != 0)
    return replace(
        spec,
        norms="both",
        norm_offset=1.0,
        scales=ScaleSpec(embedding=spec.d_model**0.5, logit_cap=config.get("final_logit_softcapping")),
        attention=replace(
            spec.attention,
            windows=windows,
            scale=config["query_pre_attn_scalar"] ** -0.5,
            cap=config.get("attn_logit_softcapping"),
        ),
    )

"""Why a model is not served: what its configuration asks for that no decoder here has, and which family is nearest.

Words only, by the names of settings. Code that a folder brings is never looked at.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Settings that only models with such a part have, by the part.
PARTS: Mapping[str, tuple[str, ...]] = {
    "gated delta layers": ("linear_conv_kernel_dim", "linear_num_key_heads"),
    "state-space layers": ("mamba_num_heads", "mamba_d_state", "mamba_expand", "ssm_cfg", "state_size"),
    "recurrent layers": ("lru_width", "rwkv_version", "attention_hidden_size"),
    "attention through an index": ("index_topk", "index_n_heads"),
    "lightning attention": ("linear_attn_config", "full_attn_alpha_factor"),
    "an encoder": ("encoder", "num_encoder_layers", "encoder_layers"),
    "embeddings of each layer": ("hidden_size_per_layer_input", "altup_num_inputs"),
    "a tower for images": ("vision_config", "vit_config"),
    "a part for sounds": ("audio_config", "speech_config"),
}
# Settings by which a family that is served is told, the more telling ones first.
MARKS: Mapping[str, tuple[str, ...]] = {
    "deepseek_v3": ("kv_lora_rank", "qk_rope_head_dim"),
    "gemma2": ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    "granite": ("embedding_multiplier", "residual_multiplier", "logits_scaling"),
    "glm4_moe": ("n_routed_experts", "first_k_dense_replace"),
    "qwen3_moe": ("num_experts", "moe_intermediate_size"),
    "mixtral": ("num_local_experts",),
    "smollm3": ("no_rope_layers",),
    "mistral": ("sliding_window",),
    "llama": ("hidden_size", "num_key_value_heads"),
}


def lacking(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts that the configuration names and that are computed nowhere here; empty where it tells of none."""
    text = config.get("text_config")
    settings = {**config, **(text if isinstance(text, Mapping) else {})}
    found = [part for part, names in PARTS.items() if any(settings.get(name) for name in names)]
    kinds = settings.get("layer_types")
    # A list of kinds says it without a setting of its own.
    known = {"full_attention", "sliding_attention"}
    others = {str(kind) for kind in kinds} - known if isinstance(kinds, list) else set()
    return (*found, *(f"layers of the kind {kind!r}" for kind in sorted(others)))


def nearest(config: Mapping[str, Any], served: Collection[str]) -> str:
    """The family that is served and most like the configuration's: by its name, else by its settings."""
    model_type = str(config.get("model_type"))
    text = config.get("text_config")
    settings = {**config, **(text if isinstance(text, Mapping) else {})}
    # By name first: a family's next version is mostly named after it.
    if like := difflib.get_close_matches(model_type, served, n=1, cutoff=0.7):
        return like[0]
    return next(_by_marks(settings), "llama")


def _by_marks(settings: Mapping[str, Any]) -> Iterator[str]:
    for family, marks in MARKS.items():
        if any(settings.get(mark) is not None for mark in marks):
            yield family


def refusal(config: Mapping[str, Any], served: Collection[str]) -> str:
    """What is said of a configuration whose family is not served."""
    lacks = lacking(config)
    has = f" It has {', '.join(lacks)}." if lacks else ""
    code = " It asks for code of its own, which is never run." if config.get("auto_map") else ""
    return (
        f"The model type {str(config.get('model_type'))!r} is not supported.{has}{code} The nearest that is served is "
        f"{nearest(config, served)!r}; known are {', '.join(sorted(served))}."
    )

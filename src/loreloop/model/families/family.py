"""What a family must tell: its spec, and the names of its weights in published folders.

Names are templates over the layer number. Knows no file and no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from loreloop.model.spec import DecoderSpec, RopeSpec, as_settings
from loreloop.model.tower import Tower
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.images import ImageRules


class Family(Protocol):
    """A module of this folder, seen as a value."""

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder that a published `config.json` describes."""
        ...

    @property
    def names(self) -> WeightNames:
        """Where the published weights of this family go."""
        ...


@runtime_checkable
class SeeingFamily(Protocol):
    """What a family whose models take images must tell besides."""

    def image_rules(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageRules:
        """How images become tokens, by the model's configuration and that of its image processor."""
        ...

    def tower(self, config: Mapping[str, Any]) -> Tower:
        """The vision tower of transformers, its weights not yet filled in."""
        ...


@dataclass(frozen=True)
class WeightNames:
    """Where published weights go. A fused site lists the names whose rows are stacked, in order."""

    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    attention_norm: str = "model.layers.{layer}.input_layernorm.weight"
    feed_forward_norm: str = "model.layers.{layer}.post_attention_layernorm.weight"
    q_norm: str = "model.layers.{layer}.self_attn.q_norm.weight"
    k_norm: str = "model.layers.{layer}.self_attn.k_norm.weight"
    projection: str = "model.layers.{layer}.{part}"
    q_a_norm: str = "model.layers.{layer}.self_attn.q_a_layernorm.weight"
    kv_a_norm: str = "model.layers.{layer}.self_attn.kv_a_layernorm.weight"
    q_b: str = "model.layers.{layer}.self_attn.q_b_proj.weight"
    kv_b: str = "model.layers.{layer}.self_attn.kv_b_proj.weight"
    router: str = "model.layers.{layer}.mlp.gate.weight"
    router_bias: str = "model.layers.{layer}.mlp.gate.e_score_correction_bias"
    expert: str = "model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
    expert_parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    ignored: tuple[str, ...] = ()  # beginnings of names that belong to something else, over the number of layers


def dense_spec(config: Mapping[str, Any], family: str, *, qkv_bias: bool, qk_norm: bool) -> DecoderSpec:
    """The spec of a Llama-like configuration; what the decoder cannot do is refused by name."""
    if config.get("hidden_act", "silu") != "silu":
        raise BadRequest(f"This {family} model uses the activation {config['hidden_act']!r}; only silu is supported.")
    # Served anyway, such a model would be right in short texts and silently wrong in long ones.
    if config.get("use_sliding_window"):
        raise BadRequest(f"This {family} model uses sliding-window attention, which is not supported.")
    n_heads = config["num_attention_heads"]
    return DecoderSpec(
        family=family,
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        # Older configurations leave the head's width out, and it is then what the heads divide the model's width into.
        d_head=config.get("head_dim") or config["hidden_size"] // n_heads,
        d_ff=config["intermediate_size"],
        rope=rope_spec(config),
        norm_eps=config["rms_norm_eps"],
        context_window=config["max_position_embeddings"],
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        eos_token_ids=eos_ids(config.get("eos_token_id")),
    )


def rope_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the rotary embedding under either of their names; empty where there are none. TypeError where
    they are no mapping."""
    # Newer configurations have `rope_parameters`, older ones `rope_scaling`; where both stand, the newer one is meant.
    return as_settings("rope_scaling", config.get("rope_parameters") or config.get("rope_scaling") or {})


def rope_spec(config: Mapping[str, Any]) -> RopeSpec:
    """Reads both spellings: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`."""
    scaling = rope_settings(config)
    # 10000 is the base of the first rotary models, and the default of configurations that name none.
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return RopeSpec(theta)
    if kind == "linear":
        return RopeSpec(theta, "linear", factor=float(scaling["factor"]))
    if kind == "llama3":
        return RopeSpec(
            theta,
            "llama3",
            factor=float(scaling["factor"]),
            low_freq_factor=float(scaling["low_freq_factor"]),
            high_freq_factor=float(scaling["high_freq_factor"]),
            original_context_window=int(scaling["original_max_position_embeddings"]),
        )
    if kind == "yarn":
        return _yarn(theta, scaling, config)
    raise BadRequest(f"The rope scaling {kind!r} is not supported; default, linear, llama3 and yarn are.")


def _yarn(theta: float, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> RopeSpec:
    window = int(scaling.get("original_max_position_embeddings") or config["max_position_embeddings"])
    factor = float(scaling.get("factor") or config["max_position_embeddings"] / window)
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        # DeepSeek's form: a configuration that names both scales has their quotient; with one of them alone neither
        # counts.
        own, all_dims = float(scaling.get("mscale") or 0), float(scaling.get("mscale_all_dim") or 0)
        attention_factor = (
            yarn_scale(factor, own) / yarn_scale(factor, all_dims) if own and all_dims else yarn_scale(factor)
        )
    return RopeSpec(
        theta,
        "yarn",
        factor=factor,
        original_context_window=window,
        beta_fast=float(scaling.get("beta_fast") or 32),
        beta_slow=float(scaling.get("beta_slow") or 1),
        attention_factor=float(attention_factor),
        whole_dimensions=bool(scaling.get("truncate", True)),
    )


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """By how much attention is sharpened over a window `factor` times as long."""
    # The formula is the one of the YaRN paper (Peng et al., 2023), with DeepSeek's additional `mscale`.
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def eos_ids(value: float | list[float] | None) -> tuple[int, ...]:
    """One id, several or none; some tools write 2 as 2.0."""
    if value is None:
        return ()
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int | float) and each == int(each) for each in found):
        raise TypeError(f"eos_token_id = {value!r}")
    return tuple(int(each) for each in found)

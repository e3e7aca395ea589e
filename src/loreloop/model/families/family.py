"""What a family must tell: its spec, and the names of its weights in published folders.

Names are templates over the layer number. Knows no file and no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from loreloop.model.attention_spec import AttentionSpec, RopeSpec, as_settings
from loreloop.model.spec import Activation, DecoderSpec
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
    """What a family whose models take images must tell besides. Its tower stands in the table of `model/towers.py`."""

    def image_rules(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageRules:
        """How images become tokens, by the model's configuration and that of its image processor."""
        ...


@runtime_checkable
class RoutingFamily(Protocol):
    """What a family tells whose models send tokens to experts."""

    @property
    def routes(self) -> bool:
        """True."""
        ...


@dataclass(frozen=True)
class WeightNames:
    """Where published weights go. A fused site lists the names whose rows are stacked, in order."""

    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    attention_norm: str = "model.layers.{layer}.input_layernorm.weight"
    feed_forward_norm: str = "model.layers.{layer}.post_attention_layernorm.weight"
    attention_after: str = "model.layers.{layer}.post_attention_layernorm.weight"
    feed_forward_after: str = "model.layers.{layer}.post_feedforward_layernorm.weight"
    sinks: str = "model.layers.{layer}.self_attn.sinks"
    q_norm: str = "model.layers.{layer}.self_attn.q_norm.weight"
    k_norm: str = "model.layers.{layer}.self_attn.k_norm.weight"
    projection: str = "model.layers.{layer}.{part}"
    q_a_norm: str = "model.layers.{layer}.self_attn.q_a_layernorm.weight"
    kv_a_norm: str = "model.layers.{layer}.self_attn.kv_a_layernorm.weight"
    q_b: str = "model.layers.{layer}.self_attn.q_b_proj.weight"
    kv_b: str = "model.layers.{layer}.self_attn.kv_b_proj.weight"
    router: str = "model.layers.{layer}.mlp.gate.weight"
    router_bias: str = "model.layers.{layer}.mlp.gate.e_score_correction_bias"
    router_linear_bias: str = "model.layers.{layer}.mlp.gate.bias"
    expert: str = "model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
    expert_bias: str = "model.layers.{layer}.mlp.experts.{expert}.{part}.bias"
    expert_parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    ignored: tuple[str, ...] = ()  # beginnings of names that belong to something else, over the number of layers


LAYER_KINDS = {"sliding_attention", "full_attention"}  # those with a window, and those that see all tokens before

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",  # the same formula, as older configurations call it
}


def dense_spec(config: Mapping[str, Any], family: str, *, qkv_bias: bool = False, qk_norm: bool = False) -> DecoderSpec:
    """The spec of a Llama-like configuration; what the decoder cannot do is refused by name."""
    activation = config.get("hidden_act") or "silu"
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise BadRequest(f"This {family} model uses the activation {activation!r}; {known} are supported.")
    n_heads = config["num_attention_heads"]
    # Older configurations leave the head's width out, and it is then what the heads divide the model's width into.
    d_head = config.get("head_dim") or config["hidden_size"] // n_heads
    return DecoderSpec(
        family=family,
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        d_head=d_head,
        d_ff=config["intermediate_size"],
        rope=rope_spec(config),
        norm_eps=config["rms_norm_eps"],
        context_window=config["max_position_embeddings"],
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias,
        qk_norm="head" if qk_norm else "none",
        activation=ACTIVATIONS[activation],
        d_rotary=_d_rotary(config, d_head),
        attention=AttentionSpec(windows=layer_windows(config, lambda layer: _slides(config, layer))),
        eos_token_ids=eos_ids(config.get("eos_token_id")),
    )


def biased(spec: DecoderSpec, config: Mapping[str, Any]) -> DecoderSpec:
    """With the biases that `attention_bias` and `mlp_bias` say: those of attention at all four of its projections."""
    attention = bool(config.get("attention_bias"))
    return replace(spec, qkv_bias=attention, o_bias=attention, mlp_bias=bool(config.get("mlp_bias")))


def _d_rotary(config: Mapping[str, Any], d_head: int) -> int | None:
    """How much of a head is turned, where the configuration says that it is not all."""
    share = rope_settings(config).get("partial_rotary_factor") or config.get("partial_rotary_factor")
    return None if share in (None, 1, 1.0) else int(d_head * share)


def _slides(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer has a window by Qwen's settings, which name the first such layer."""
    return bool(config.get("use_sliding_window")) and layer >= config.get("max_window_layers", 28)


def layer_windows(config: Mapping[str, Any], default: Callable[[int], bool]) -> tuple[int | None, ...]:
    """The window of each layer: by `layer_types`, else of those layers for which `default` says so; empty: none has
    one."""
    n_layers, window = config["num_hidden_layers"], config.get("sliding_window")
    kinds = config.get("layer_types")
    # A third kind, such as chunks or recurrent layers, is another attention and must not be taken for one of these.
    if unknown := set(kinds or ()) - LAYER_KINDS:
        raise BadRequest(f"Its layers are of the kinds {sorted(map(str, unknown))}, which are not supported.")
    if window is None or config.get("use_sliding_window") is False:
        return ()
    if kinds is None:
        sliding = [default(layer) for layer in range(n_layers)]
    else:
        sliding = [kind == "sliding_attention" for kind in kinds]
    return tuple(window if slides else None for slides in sliding) if any(sliding) else ()


def rope_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the rotary embedding under either of their names; empty where there are none. TypeError where
    they are no mapping."""
    # Newer configurations have `rope_parameters`, older ones `rope_scaling`; where both stand, the newer one is meant.
    return as_settings("rope_scaling", config.get("rope_parameters") or config.get("rope_scaling") or {})


def ropes_by_layer_kind(
    config: Mapping[str, Any], theta: float, local_theta: float | None = None
) -> tuple[RopeSpec, RopeSpec]:
    """The rotary embeddings of the layers that see all tokens and of those with a window, with these bases where the
    configuration names none; without `local_theta` the base of all is one.

    Newer configurations have settings for each kind of layer. Older ones name a stretching once, and mean the layers
    that see all tokens: those with a window turn as they always did."""
    config = {**config, "rope_theta": config.get("rope_theta") or theta}
    ropes = rope_settings(config)
    if not LAYER_KINDS & ropes.keys():
        full = rope_spec(config)
        return full, RopeSpec(local_theta or full.theta)
    full, sliding = (
        rope_spec({**config, "rope_parameters": {"rope_theta": base, **as_settings(kind, ropes.get(kind) or {})}})
        for kind, base in (("full_attention", None), ("sliding_attention", local_theta))
    )
    return full, sliding


def rope_spec(config: Mapping[str, Any]) -> RopeSpec:
    """Reads both spellings: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`.

    BadRequest where kinds of layers have embeddings of their own: `ropes_by_layer_kind` reads those."""
    scaling = rope_settings(config)
    # Taken for the settings of one embedding they would name no base at all, and a wrong one would go unnoticed.
    if LAYER_KINDS & scaling.keys():
        kinds = ", ".join(sorted(scaling))
        raise BadRequest(f"Its kinds of layers ({kinds}) have rotary embeddings of their own, which is not supported.")
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
    if kind in ("longrope", "su"):
        return _longrope(theta, scaling, config)
    raise BadRequest(f"The rope scaling {kind!r} is not supported; default, linear, llama3, yarn and longrope are.")


def first_window(config: Mapping[str, Any]) -> int:
    """How many tokens a model had seen at once before its rotary embedding was stretched."""
    settings = rope_settings(config)
    window = config.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    return int(window or config["max_position_embeddings"])


def _longrope(theta: float, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> RopeSpec:
    """LongRoPE with its divisors for texts up to the first window."""
    window = first_window(config)
    factor = float(scaling.get("factor") or config["max_position_embeddings"] / window)
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        # The formula is the one of the LongRoPE paper (Ding et al., 2024).
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(window))
    return RopeSpec(
        theta,
        "longrope",
        factor=factor,
        original_context_window=window,
        attention_factor=float(attention_factor),
        divisors=tuple(float(each) for each in scaling["short_factor"]),
    )


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

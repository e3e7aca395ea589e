"""DeepSeek V3 and Kimi K2: latent attention, sigmoid routing with a correction bias, a shared expert, YaRN.

Configuration and names only. The layer behind the last one, which guesses the token after next, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.families.family import WeightNames, dense_spec, rope_settings, yarn_scale
from loreloop.model.spec import DecoderSpec, LatentSpec, MoeSpec
from loreloop.protocol.errors import BadRequest


class DeepseekV3:
    """DeepSeek V3's decoder, of which Kimi K2 is a larger instance with fewer groups."""

    routes = True
    names = WeightNames(ignored=("model.layers.{n_layers}.",))

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration. BadRequest where it has biases, or routes by another method."""
        family = str(config["model_type"])
        if config.get("attention_bias"):
            raise BadRequest(f"This {family} model has biases in its projections, which is not supported.")
        # Earlier DeepSeek models share the names of settings but score and choose experts otherwise.
        served = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
        for setting, value in served.items():
            if config.get(setting, value) != value:
                raise BadRequest(f"This {family} model has {setting} = {config[setting]!r}; only {value!r} is known.")
        spec = dense_spec(config, family, qkv_bias=False, qk_norm=False)
        latent = _latent(config, spec)
        return replace(
            spec,
            # The configuration's own head counts are those of plain attention; latent attention expands a key for every
            # head.
            n_kv_heads=spec.n_heads,
            d_head=latent.d_nope + latent.d_rope,
            latent=latent,
            moe=routing(config, spec.n_layers),
        )


def _latent(config: Mapping[str, Any], spec: DecoderSpec) -> LatentSpec:
    d_nope, d_rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    # YaRN's sharpening acts on queries and on keys, so the scale of their product has it squared.
    sharpening = yarn_scale(spec.rope.factor, rope_settings(config).get("mscale_all_dim") or 0.0)
    return LatentSpec(
        q_rank=config.get("q_lora_rank"),
        kv_rank=config["kv_lora_rank"],
        d_nope=d_nope,
        d_rope=d_rope,
        d_value=config["v_head_dim"],
        softmax_scale=(d_nope + d_rope) ** -0.5 * sharpening**2,
        neighbours_turn=bool(config.get("rope_interleave", True)),
    )


def routing(config: Mapping[str, Any], n_layers: int) -> MoeSpec | None:
    """How tokens are routed, by settings that other families share; None where the model has no experts."""
    n_experts = config.get("n_routed_experts") or config.get("num_local_experts")
    if not n_experts:
        return None
    # The first layers are dense, and from there on every `step`-th layer routes.
    first, step = config.get("first_k_dense_replace") or 0, config.get("moe_layer_freq") or 1
    return MoeSpec(
        n_experts=n_experts,
        top_k=config["num_experts_per_tok"],
        d_expert=config["moe_intermediate_size"],
        layers=tuple(i for i in range(first, n_layers) if i % step == 0),
        scoring="sigmoid",
        normalize=bool(config.get("norm_topk_prob", True)),
        scaling=float(config.get("routed_scaling_factor", 1.0)),
        n_groups=config.get("n_group") or 1,
        top_groups=config.get("topk_group") or 1,
        d_shared=config["moe_intermediate_size"] * (config.get("n_shared_experts") or 0),
    )

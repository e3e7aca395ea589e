"""gpt-oss: windows in turns, a sink in every head, biased experts with clamped gates, YaRN.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.families.family import WeightNames, dense_spec, layer_windows
from loreloop.model.spec import DecoderSpec, MoeSpec

# What published configurations may leave out.
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class GptOss:
    """gpt-oss' decoder, whose layers all route."""

    routes = True
    names = WeightNames(
        router="model.layers.{layer}.mlp.router.weight", router_linear_bias="model.layers.{layer}.mlp.router.bias"
    )

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or YARN
        theta = rope.get("rope_theta") or config.get("rope_theta") or 150_000.0
        about = {**config, "rope_parameters": {**rope, "rope_theta": theta}}
        biased = bool(config.get("attention_bias", True))
        spec = dense_spec(about, "gpt_oss", qkv_bias=biased)
        moe = MoeSpec(
            n_experts=config["num_local_experts"],
            top_k=config["num_experts_per_tok"],
            d_expert=config["intermediate_size"],
            layers=tuple(range(spec.n_layers)),
            # The softmax over the chosen experts alone is that over all, normed to the chosen.
            normalize=True,
            biases=True,
            by_turns=True,
        )
        windows = layer_windows(config, lambda layer: layer % 2 == 0)
        attention = replace(spec.attention, windows=windows, sinks=True)
        return replace(spec, o_bias=biased, activation="clamped_silu", attention=attention, moe=moe)

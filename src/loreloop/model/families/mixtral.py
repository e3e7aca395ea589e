"""Mixtral: Llama with a routed feed-forward in every layer, softmax scores over the chosen experts alone.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.families.family import WeightNames, dense_spec, layer_windows
from loreloop.model.spec import DecoderSpec, MoeSpec


class Mixtral:
    """Mixtral's decoder: Llama's attention before routed feed-forwards."""

    routes = True
    names = WeightNames(
        router="model.layers.{layer}.block_sparse_moe.gate.weight",
        expert="model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight",
        expert_parts=("w1", "w3", "w2"),
    )

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration; a window is that of all layers."""
        spec = dense_spec(config, "mixtral")
        # Softmax over the chosen experts' logits is softmax over all, normed to the chosen; so the spec's defaults fit.
        moe = MoeSpec(
            n_experts=config["num_local_experts"],
            top_k=config["num_experts_per_tok"],
            d_expert=config["intermediate_size"],
            layers=tuple(range(spec.n_layers)),
        )
        attention = replace(spec.attention, windows=layer_windows(config, lambda _: True))
        return replace(spec, moe=moe, attention=attention)

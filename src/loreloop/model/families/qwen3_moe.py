"""Qwen3 with routed feed-forwards: softmax scores over all experts, in the layers that the configuration names.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.families.family import WeightNames, biased, dense_spec
from loreloop.model.spec import DecoderSpec, MoeSpec


class Qwen3Moe:
    """Qwen3's decoder with routed feed-forwards."""

    routes = True
    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration; layers that `mlp_only_layers` names, or that fall between the steps, are
        dense."""
        spec = biased(dense_spec(config, "qwen3_moe", qk_norm=True), config)
        step, dense = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or ()
        moe = MoeSpec(
            # transformers renamed the setting, and folders exist with either name.
            n_experts=config["num_experts"] if "num_experts" in config else config["num_local_experts"],
            top_k=config["num_experts_per_tok"],
            d_expert=config["moe_intermediate_size"],
            layers=tuple(i for i in range(spec.n_layers) if (i + 1) % step == 0 and i not in dense),
            normalize=bool(config.get("norm_topk_prob", False)),
        )
        return replace(spec, moe=moe)

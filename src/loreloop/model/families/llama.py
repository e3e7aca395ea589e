"""Llama 2, 3 and its relatives (SmolLM2 among them): grouped queries, gated SiLU, no head norms.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loreloop.model.families.family import WeightNames, dense_spec
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import BadRequest


class Llama:
    """Llama 2 and 3 and all models that are published as Llama."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration. BadRequest where projections have biases."""
        if config.get("mlp_bias") or config.get("attention_bias"):
            raise BadRequest("This llama model has biases in its projections, which is not supported.")
        return dense_spec(config, "llama", qkv_bias=False, qk_norm=False)

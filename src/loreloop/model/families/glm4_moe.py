"""GLM-4.5, 4.6 and 4.7: grouped queries turned in half of each head, routing as DeepSeek V3's.

Configuration and names only. The layer behind the last one, which guesses the token after next, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.families.deepseek_v3 import routing
from loreloop.model.families.family import WeightNames, dense_spec
from loreloop.model.spec import DecoderSpec


class Glm4Moe:
    """GLM-4.5's decoder."""

    routes = True
    names = WeightNames(ignored=("model.layers.{n_layers}.",))

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration."""
        # Half of a head is turned where a configuration does not say how much.
        spec = dense_spec(
            {"partial_rotary_factor": 0.5, **config},
            "glm4_moe",
            qkv_bias=bool(config.get("attention_bias")),
            qk_norm=bool(config.get("use_qk_norm")),
        )
        return replace(spec, moe=routing(config, spec.n_layers))

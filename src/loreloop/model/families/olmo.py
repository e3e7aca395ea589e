"""OLMo 2 and 3: norms behind attention and feed-forward, norms of queries and keys over all heads; OLMo 3 has windows.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.families.family import WeightNames, biased, dense_spec, layer_windows
from loreloop.model.spec import DecoderSpec


class Olmo:
    """OLMo 2's decoder, and OLMo 3's, where three of four layers have a window."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration."""
        spec = biased(dense_spec(config, str(config["model_type"])), config)
        windows = layer_windows(config, lambda layer: (layer + 1) % 4 != 0)
        return replace(
            spec,
            qk_norm="whole",
            norms="after",
            attention=replace(spec.attention, windows=windows if spec.family == "olmo3" else ()),
        )

"""OLMo 2 and 3: norms behind attention and feed-forward, norms of queries and keys over all heads; OLMo 3 has windows.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.families.family import (
    WeightNames,
    biased,
    dense_spec,
    layer_windows,
    ropes_by_layer_kind,
)
from loreloop.model.spec import DecoderSpec

THETA = 500_000.0  # the base of the rotary embedding where the configuration names none


class Olmo:
    """OLMo 2's decoder, and OLMo 3's, where three of four layers have a window."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration."""
        if config["model_type"] == "olmo3":
            return _olmo3(config)
        return _common(config)


def _common(config: Mapping[str, Any]) -> DecoderSpec:
    spec = biased(dense_spec(config, str(config["model_type"])), config)
    return replace(spec, qk_norm="whole", norms="after", attention=replace(spec.attention, windows=()))


def _olmo3(config: Mapping[str, Any]) -> DecoderSpec:
    stretched, local = ropes_by_layer_kind(config, THETA)
    spec = _common({**config, "rope_parameters": None, "rope_scaling": None})
    windows = layer_windows(config, lambda layer: (layer + 1) % 4 != 0)
    attention = replace(spec.attention, windows=windows, local_rope=local if local != stretched else None)
    return replace(spec, rope=stretched, attention=attention)

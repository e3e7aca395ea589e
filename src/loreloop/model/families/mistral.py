"""Mistral and Ministral: Llama whose layers, all or some, see the last tokens of a window only.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.families.family import WeightNames, dense_spec, first_window, layer_windows, rope_settings
from loreloop.model.spec import DecoderSpec


class Mistral:
    """Mistral's decoder; a window without a list of layers is that of all of them."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration, also of a Ministral's, whose layers differ."""
        spec = dense_spec(config, str(config["model_type"]))
        # Mistral's own decoder does not look at the kinds of layers that its configuration may list.
        known = {key: value for key, value in config.items() if key != "layer_types" or spec.family == "ministral"}
        windows = layer_windows(known, lambda _: True)
        return replace(spec, attention=replace(spec.attention, windows=windows))


class Ministral3:
    """Ministral 3: Mistral's decoder with YaRN, and queries that grow with their position."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration."""
        spec = Mistral().spec(config)
        growth = float(rope_settings(config).get("llama_4_scaling_beta") or 0.0)
        window = first_window(config)
        return replace(spec, rope=replace(spec.rope, query_growth=growth, original_context_window=window))

"""Phi-3 and Phi-4: Llama with q, k and v published as one matrix and gate and up as another, heads turned in part.

Of the LongRoPE that stretches their window, the part for texts up to the first window is served.
Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.families.family import WeightNames, dense_spec, first_window, layer_windows, rope_settings
from loreloop.model.spec import DecoderSpec

LONG = ("longrope", "su", "yarn")  # as configurations of different age call it


class Phi3:
    """Phi-3's decoder, which Phi-4 and Phi-4-mini share."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration."""
        scaling = rope_settings(config)
        kind = scaling.get("rope_type") or scaling.get("type")
        if long := kind in LONG:
            about = dict(scaling) | {"rope_type": "longrope"}
            config = {**config, "rope_parameters": about}
        spec = dense_spec(config, "phi3")
        windows = layer_windows(config, lambda _: True)
        return replace(
            spec,
            fused_projections=True,
            # In longer texts all angles would be others, those of the first tokens too, whose keys are kept.
            context_window=min(first_window(config), spec.context_window) if long else spec.context_window,
            attention=replace(spec.attention, windows=windows),
        )

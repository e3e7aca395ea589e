"""SmolLM3: Llama of whose layers every fourth turns nothing by position, and may have a window.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.families.family import WeightNames, biased, dense_spec, layer_windows
from loreloop.model.spec import DecoderSpec


class SmolLM3:
    """SmolLM3's decoder."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration. `no_rope_layers` has a one for each layer that is turned, whatever its name
        says."""
        spec = biased(dense_spec(config, "smollm3"), config)
        step = config.get("no_rope_layer_interval") or 4
        turned = config.get("no_rope_layers") or [(layer + 1) % step for layer in range(spec.n_layers)]
        unturned = tuple(layer for layer in range(spec.n_layers) if not turned[layer])
        windows = layer_windows({"use_sliding_window": False, **config}, lambda layer: layer in unturned)
        return replace(spec, attention=replace(spec.attention, unturned=unturned, windows=windows))

"""Granite: Llama with factors on embeddings, scores, what layers add, and logits.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loreloop.model.families.family import WeightNames, biased, dense_spec
from loreloop.model.spec import DecoderSpec, ScaleSpec


class Granite:
    """Granite's dense decoder."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration."""
        spec = biased(dense_spec(config, "granite"), config)
        scales = ScaleSpec(
            embedding=float(config.get("embedding_multiplier", 1.0)),
            residual=float(config.get("residual_multiplier", 1.0)),
            logit=1 / float(config.get("logits_scaling", 1.0)),
        )
        attention = replace(spec.attention, scale=float(config.get("attention_multiplier", 1.0)))
        return replace(spec, scales=scales, attention=attention)

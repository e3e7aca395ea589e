"""Llama 2, 3 and its relatives (SmolLM2 among them): grouped queries, gated SiLU, no head norms.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loreloop.model.families.family import WeightNames, biased, dense_spec
from loreloop.model.spec import DecoderSpec


class Llama:
    """Llama 2 and 3 and all models that are published as Llama."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration."""
        return biased(dense_spec(config, "llama"), config)

"""Qwen3, dense: Llama with a norm on every head of queries and keys, and a head width of its own.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loreloop.model.families.family import WeightNames, biased, dense_spec
from loreloop.model.spec import DecoderSpec


class Qwen3:
    """Qwen3's dense decoder."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration. BadRequest where it uses another activation."""
        return biased(dense_spec(config, "qwen3", qk_norm=True), config)

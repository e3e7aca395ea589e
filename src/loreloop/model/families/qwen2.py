"""Qwen2 and Qwen2.5, dense: Llama with biases on queries, keys and values.

Configuration and names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loreloop.model.families.family import WeightNames, dense_spec
from loreloop.model.spec import DecoderSpec


class Qwen2:
    """Qwen2's and Qwen2.5's dense decoder."""

    names = WeightNames()

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder of the configuration. BadRequest where it uses another activation."""
        return dense_spec(config, "qwen2", qkv_bias=True)

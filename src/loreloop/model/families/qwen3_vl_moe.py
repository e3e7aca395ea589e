"""Qwen3-VL with routed feed-forwards: Qwen3-VL's images before Qwen3-MoE's decoder.

The router's weights are always made to sum to one; a layer's experts are published as one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loreloop.model.families.qwen3_moe import Qwen3Moe
from loreloop.model.families.qwen3_vl import Qwen3VL, seeing, text_config
from loreloop.model.spec import DecoderSpec


class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL with routed feed-forwards; its images are those of the dense one."""

    routes = True

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The text part's decoder, whose routers always norm a token's weights."""
        return seeing(Qwen3Moe().spec(text_config(config) | {"norm_topk_prob": True}), config, "qwen3_vl_moe")

"""Which tower stands before the decoder of which family; each has weights that are not yet filled in.

Apart from the families' own files, so that a configuration is read without loading a library of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loreloop.model.llava_tower import llava_tower
from loreloop.model.qwen3_vl_tower import qwen3_vl_tower
from loreloop.model.tower import Tower

TOWERS: Mapping[str, Callable[[Mapping[str, Any]], Tower]] = {
    "llava": llava_tower,
    "qwen3_vl": qwen3_vl_tower,
    "qwen3_vl_moe": qwen3_vl_tower,
}


def tower_of(config: Mapping[str, Any]) -> Tower:
    """The vision tower of transformers that a published configuration of a family that sees describes."""
    return TOWERS[str(config["model_type"])](config)

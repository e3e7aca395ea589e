"""Checkpoints whose weights are published in 4 bits: compressed-tensors, `pack-quantized`, symmetric, groups of 32.

A weight NAME.weight (O, I) is then three tensors: `weight_packed` (O, I / 8) int32, eight codes a word, lowest first;
`weight_scale` (O, I / 32); `weight_shape`. What is stored in another way is refused. Knows no layers.

Legend: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from loreloop.formats.float8 import is_float8
from loreloop.formats.mxfp4 import is_mxfp4
from loreloop.formats.quantized_blocks import Blocks
from loreloop.kernels.packed_products import GROUP
from loreloop.model.attention_spec import as_settings
from loreloop.protocol.errors import BadRequest

PARTS = ("packed", "scale", "shape")
WANTED = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}


def check_quantization(config: Mapping[str, Any]) -> None:
    """BadRequest where a configuration says that weights are quantised otherwise."""
    about = as_settings("quantization_config", config.get("quantization_config") or {})
    if not about or is_float8(about) or is_mxfp4(about):
        return
    kind = (about.get("quant_method"), about.get("format"))
    if kind != ("compressed-tensors", "pack-quantized"):
        raise BadRequest(
            f"The weights are quantised by {kind[0]!r} in the format {kind[1]!r}; of quantised checkpoints "
            "compressed-tensors' pack-quantized ones are read, MXFP4, and 8-bit floats (e4m3) in blocks of 128 × 128. "
            "Dequantise it first."
        )
    for name, value in as_settings("config_groups", about.get("config_groups", {})).items():
        group = as_settings(name, value)
        weights = as_settings("weights", group.get("weights") or {})
        # Every setting is compared, since weights read by wrong settings are numbers too, only other ones.
        other = {key: weights.get(key) for key, value in WANTED.items() if weights.get(key) != value}
        if other or group.get("input_activations"):
            raise BadRequest(
                f"The weights of {name} are quantised with {other or 'quantised activations'}; what is read are 4-bit "
                f"symmetric integers with a scale for {GROUP} values, and activations as they are."
            )


class Collector:
    """Puts the parts of packed weights together as they stream by, in any order."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[str, Tensor]] = {}

    def add(self, name: str, read: Callable[[], Tensor]) -> tuple[str, Blocks] | None:
        """Takes in one tensor; gives the weight's name and blocks when that was its last part."""
        weight, _, part = name.rpartition("_")
        parts = self._parts.setdefault(weight, {})
        # Parts of one weight may lie in different shards, so they wait here until the last one has come.
        parts[part] = read()
        if len(parts) < len(PARTS):
            return None
        # Let go at once: together the parts would be the whole model.
        del self._parts[weight]
        return weight, _blocks(weight, parts)

    def check_complete(self) -> None:
        """BadRequest with what is missing of the first weight whose parts have not all come."""
        for weight, parts in self._parts.items():
            missing = ", ".join(f"{weight}_{part}" for part in PARTS if part not in parts)
            raise BadRequest(f"The folder lacks {missing}, without which {weight} cannot be unpacked.")


def is_packed_part(name: str) -> bool:
    """Whether a tensor of this name is one of the three parts of a packed weight."""
    weight, _, part = name.rpartition("_")
    return part in PARTS and weight.endswith(".weight")


def published_packed(names: Iterable[str]) -> Set[str]:
    """Which weights a folder with these tensors holds packed."""
    return {name.removesuffix("_packed") for name in names if name.endswith(".weight_packed")}


def _blocks(weight: str, parts: Mapping[str, Tensor]) -> Blocks:
    packed, scale_OG, shape = parts["packed"], parts["scale"], tuple(parts["shape"].flatten().tolist())
    wanted = ((shape[0], shape[1] // 8), (shape[0], shape[1] // GROUP)) if len(shape) == 2 else None
    if wanted != (packed.shape, scale_OG.shape) or packed.dtype != torch.int32:
        raise BadRequest(
            f"{weight} is said to be {list(shape)}, but its packed codes are {list(packed.shape)} {packed.dtype} and "
            f"its scales {list(scale_OG.shape)}."
        )
    if not bool(scale_OG.isfinite().all()):
        raise BadRequest(f"Some scales of {weight} are not finite.")
    if scale_OG.dtype != torch.bfloat16:
        raise BadRequest(f"The scales of {weight} are {scale_OG.dtype}; bfloat16 is read.")
    bytes_OI = packed.contiguous().view(torch.uint8)  # the low half of a byte is the even input
    return Blocks(torch.stack((bytes_OI & 15, bytes_OI >> 4), -1).flatten(1), scale_OG, None)

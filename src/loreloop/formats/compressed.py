"""Checkpoints whose weights are published in 4 bits: compressed-tensors, `pack-quantized`, symmetric, groups of 32.

A weight NAME.weight (O, I) is then three tensors: `weight_packed` (O, I / 8) int32, eight codes a word, lowest first;
`weight_scale` (O, I / 32); `weight_shape`. What is stored in another way is refused. Knows no layers.

Legend: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set

import torch
from torch import Tensor

from loreloop.formats.quantized_blocks import Blocks
from loreloop.kernels.packed_products import GROUP
from loreloop.protocol.errors import BadRequest

PARTS = ("packed", "scale", "shape")


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

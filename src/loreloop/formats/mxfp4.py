"""Checkpoints of gpt-oss in MXFP4: a layer's experts in one tensor of codes and one of scales, taken apart.

Beside NAME_blocks (E, O, I / 32, 16) uint8 stands NAME_scales (E, O, I / 32) uint8, where NAME is `gate_up_proj` or
`down_proj` of a layer's experts. Knows no layers.

Legend: E experts, O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from loreloop.model.mx_weights import MxCodes
from loreloop.protocol.errors import BadRequest

BLOCKS, SCALES = "_blocks", "_scales"


def stacked_weights(names: Iterable[str]) -> frozenset[str]:
    """The weights, stacked over experts, of which a folder with these tensors holds codes."""
    return frozenset(name.removesuffix(BLOCKS) for name in names if name.endswith(f"_proj{BLOCKS}"))


class MxCollector:
    """Puts codes and scales of the stacked weights `of` together as they stream by, in any order."""

    def __init__(self, of: frozenset[str]) -> None:
        self.of = of
        self._waiting: dict[str, dict[str, Tensor]] = {}

    def weight_of(self, name: str) -> str | None:
        """The stacked weight that a tensor is a part of."""
        for suffix in (BLOCKS, SCALES):
            if name.endswith(suffix) and name.removesuffix(suffix) in self.of:
                return name.removesuffix(suffix)
        return None

    def add(self, name: str, read: Callable[[], Tensor]) -> list[MxCodes] | None:
        """Takes in one part; gives the codes of each expert, outputs first, when that was the second."""
        weight = self.weight_of(name)
        assert weight is not None, name
        parts = self._waiting.setdefault(weight, {})
        parts[name.removeprefix(weight)] = read()
        if len(parts) < 2:
            return None
        del self._waiting[weight]
        return _taken_apart(weight, parts[BLOCKS], parts[SCALES])

    def check_complete(self) -> None:
        """BadRequest where a part is missing."""
        for weight in self._waiting:
            raise BadRequest(f"The folder lacks the codes or the scales of {weight!r}.")


def dense_stack(codes_E: Iterable[MxCodes]) -> Tensor:
    """(E, I, O) bf16, as the same weights are published without packing."""
    return torch.stack([codes.dense() for codes in codes_E]).transpose(1, 2).contiguous()


def _taken_apart(weight: str, blocks: Tensor, scale_EOG: Tensor) -> list[MxCodes]:
    wanted = (*blocks.shape[:3],)
    both_bytes = blocks.dtype == scale_EOG.dtype == torch.uint8
    if blocks.dim() != 4 or blocks.shape[3] != 16 or tuple(scale_EOG.shape) != wanted or not both_bytes:
        raise BadRequest(
            f"{weight!r} has codes {list(blocks.shape)} {blocks.dtype} and scales {list(scale_EOG.shape)} "
            f"{scale_EOG.dtype}; MXFP4 has 16 bytes of codes for each scale."
        )
    # 255 stands for no number at all.
    if bool((scale_EOG == 255).any()):
        raise BadRequest(f"Some scales of {weight!r} are not numbers.")
    return [MxCodes(codes.flatten(1), scales) for codes, scales in zip(blocks, scale_EOG, strict=True)]

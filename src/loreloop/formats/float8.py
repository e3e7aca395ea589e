"""Checkpoints of 8-bit floats with a scale for each block of 128 × 128 values (DeepSeek-V3, Kimi K2): made bf16.

Beside NAME (O, I) stands `NAME_scale_inv`, (O / 128, I / 128) rounded up, by which its values are multiplied.
Activations stay as they are. Knows no layers.

Legend: O outputs, I inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from loreloop.formats.quantization import BLOCK
from loreloop.protocol.errors import BadRequest

SCALE = "_scale_inv"
Tensors = Iterator[tuple[str, Callable[[], Tensor]]]


def descaled(tensors: Tensors, scaled: set[str]) -> Tensors:
    """The tensors, of which those named `scaled` are multiplied by their scales, whichever comes first."""
    waiting: dict[str, Tensor] = {}
    for name, read in tensors:
        weight = name.removesuffix(SCALE)
        if weight not in scaled:
            yield name, read
        # A weight and its scales may lie in different shards and come in either order.
        elif weight not in waiting:
            waiting[weight] = read()
        else:
            pair = (waiting.pop(weight), read())
            yield weight, functools.partial(_product, weight, *(pair if name != weight else reversed(pair)))
    if waiting:
        raise BadRequest(f"The folder lacks the weight or the scales of {sorted(waiting)[0]!r}.")


def _product(name: str, weight_OI: Tensor, scale: Tensor) -> Tensor:
    wanted = tuple(-(-size // BLOCK) for size in weight_OI.shape)
    if weight_OI.dtype != torch.float8_e4m3fn or weight_OI.dim() != 2 or scale.shape != wanted:
        raise BadRequest(
            f"{name!r} is {weight_OI.dtype} {list(weight_OI.shape)} with scales {list(scale.shape)}; scales are read "
            f"of 8-bit floats (e4m3), one for each {BLOCK} × {BLOCK}."
        )
    if not bool(scale.isfinite().all()):
        raise BadRequest(f"Scales of {name!r} are not finite.")
    # The last blocks may reach beyond the weight, and their scales are cut off with it.
    scale_OI = scale.float().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    d_out, d_in = weight_OI.shape
    return (weight_OI.float() * scale_OI[:d_out, :d_in]).to(torch.bfloat16)

"""Products with packed weights as functions of tensors, unseen by autograd; packed_products.c has the layout.

Legend: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import functools
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loreloop.kernels.build import library

GROUP = 32  # inputs that share a scale
LANES = 16  # outputs that lie side by side


@dataclass(frozen=True)
class Codes:
    """Codes of 4 or 8 bits as packed_products.c has them.

    Scales and offsets (tiles, groups, 16), bf16 or IEEE halves."""

    codes: Tensor
    scales: Tensor
    offsets: Tensor | None

    @property
    def bits(self) -> int:
        """4 or 8, as the codes' dtype tells: 4-bit codes come in pairs in uint8, 8-bit ones are int8."""
        return 4 if self.codes.dtype == torch.uint8 else 8

    @property
    def d_out(self) -> int:
        """The number of outputs O, a multiple of 16."""
        return self.scales.shape[0] * LANES

    @property
    def d_in(self) -> int:
        """The number of inputs I, a multiple of 32."""
        return self.scales.shape[1] * GROUP

    def arguments(self) -> tuple[int | None, ...]:
        """What every kernel takes of a weight: its sizes, its form, and pointers. The weight must outlive the call."""
        for x in (self.codes, self.scales, self.offsets):
            # A slice of tiles is contiguous, any other slice is not, and the kernel knows no strides.
            assert x is None or x.is_contiguous()
        offsets = None if self.offsets is None else self.offsets.data_ptr()
        half = int(self.scales.dtype == torch.float16)
        return (self.d_out, self.d_in, self.bits, half, self.codes.data_ptr(), self.scales.data_ptr(), offsets)


@functools.cache
def _calls() -> Any:
    """The library, where it has these kernels: processors with vectors."""
    calls: Any = library()
    if not hasattr(calls, "packed_product"):
        return None
    # Undeclared, ctypes would pass addresses as 32-bit integers.
    calls.packed_product.argtypes = [c_int64] * 5 + [c_void_p] * 5
    calls.unpacked.argtypes = [c_int64] * 4 + [c_void_p] * 4
    calls.packed_product.restype = calls.unpacked.restype = None
    return calls


def supports(x: Tensor) -> bool:
    """Whether there are kernels for rows like these."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and _calls() is not None


def product(x_TI: Tensor, weight: Codes) -> Tensor:
    """x · Wᵀ, (T, O) bf16."""
    # Rows may come as a slice of a wider tensor, and the kernel steps from row to row by I alone.
    x_TI = x_TI.contiguous()
    y_TO = x_TI.new_empty(x_TI.shape[0], weight.d_out)
    _calls().packed_product(x_TI.shape[0], *weight.arguments(), x_TI.data_ptr(), y_TO.data_ptr())
    return y_TO


def unpacked(weight: Codes) -> Tensor:
    """W, (O, I) bf16."""
    w_OI = torch.empty(weight.d_out, weight.d_in, dtype=torch.bfloat16)
    _calls().unpacked(*weight.arguments(), w_OI.data_ptr())
    return w_OI

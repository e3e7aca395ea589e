"""Products of bf16 rows on a CPU as functions of tensors, unseen by autograd; bf16_products.c has the layout.

A row's result does not depend on the rows beside it, nor on whether its weight was laid out beforehand.

Legend: T rows, I inputs, O outputs, R ranks.
"""

from __future__ import annotations

import functools
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loreloop.kernels import isa
from loreloop.kernels.build import library

LANES = 16  # outputs that lie side by side


@dataclass(frozen=True)
class Panels:
    """A weight (O, I) laid out for the product, zeros behind its last output and input."""

    numbers: Tensor
    d_out: int
    d_in: int


@functools.cache
def _calls() -> Any:
    """The library, where it has these kernels and they are the better ones."""
    # The functions exist only where the compiler's target has vectors, so their absence is an ordinary answer and not
    # an error.
    calls: Any = library()
    if not hasattr(calls, "panel_product") or isa.has_tiles():
        return None
    calls.panel_product.argtypes = [c_int64] * 3 + [c_void_p, c_int64] * 3 + [c_int64] * 2 + [c_void_p]
    calls.panel_site.argtypes = [c_int64] * 4 + [c_void_p] * 8
    calls.panel_lay_out.argtypes = [c_int64] * 2 + [c_void_p, c_int64, c_void_p]
    calls.panel_product.restype = calls.panel_site.restype = calls.panel_lay_out.restype = None
    return calls


def supports(x: Tensor) -> bool:
    """Whether there are kernels for weights or rows like these."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and _calls() is not None


def laid_out(weight_OI: Tensor) -> Panels:
    """The weight (O, I) in the order in which the kernels read it: tiles of 16 outputs, pairs of inputs. Costs a copy,
    so it is for weights that do not change."""
    check_bf16(weight_OI)
    d_out, d_in = weight_OI.shape
    # The kernel steps from row to row by a stride but reads a row's numbers one behind the other.
    weight_OI = _rows(weight_OI)
    # Both sizes are rounded up: the kernel fills the rest with zeros, which add nothing to any sum.
    numbers = weight_OI.new_empty(-(-d_out // LANES), -(-d_in // 2), LANES, 2)
    _calls().panel_lay_out(d_out, d_in, weight_OI.data_ptr(), weight_OI.stride(0), numbers.data_ptr())
    return Panels(numbers, d_out, d_in)


def product(x_TI: Tensor, weight: Panels | Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x · Wᵀ + bias (fp32), (T, O) bf16."""
    # The result has the true number of outputs; the padding behind a laid out weight's last output is never stored.
    d_out = weight.d_out if isinstance(weight, Panels) else weight.shape[0]
    y_TO = x_TI.new_empty(x_TI.shape[0], d_out)
    _call(y_TO, x_TI, weight, adds=False, bias_O=bias_O)
    return y_TO


def turned_product(x_TO: Tensor, weight_OI: Tensor) -> Tensor:
    """x · W, (T, I) bf16."""
    check_bf16(x_TO, weight_OI)
    y_TI = x_TO.new_empty(x_TO.shape[0], weight_OI.shape[1])
    x_TO, weight_OI = _rows(x_TO), _rows(weight_OI)
    assert x_TO.shape[1] == weight_OI.shape[0], (x_TO.shape, weight_OI.shape)
    # The same kernel computes x · Wᵀ and x · W: here the roles of the two operands are exchanged instead of copying Wᵀ.
    strides = (number for x in (weight_OI, x_TO, y_TI) for number in (x.data_ptr(), x.stride(0)))
    _calls().panel_product(*y_TI.shape, x_TO.shape[1], *strides, 1, 0, None)
    return y_TI


def add_product(y_TO: Tensor, x_TI: Tensor, weight: Panels | Tensor) -> None:
    """y += x · Wᵀ, rounded once."""
    # A copy of y would take the sum, and the caller would keep the old numbers, so a strided y is refused.
    assert y_TO.stride(1) == 1 or y_TO.shape[1] <= 1
    _call(y_TO, x_TI, weight, adds=True, bias_O=None)


def site(x_TI: Tensor, weight: Panels, bias_O: Tensor | None, a: Panels, b: Panels, mask_TR: Tensor | None) -> Tensor:
    """x · Wᵀ + bias, and to it, rounded, ((x · Aᵀ) ∘ mask) · Bᵀ; the mask is of zeros and ones."""
    x_TI, n_rows = x_TI.contiguous(), x_TI.shape[0]
    check_bf16(x_TI, *(() if mask_TR is None else (mask_TR,)))
    assert bias_O is None or bias_O.dtype == torch.float32
    # The kernel takes no strides for the mask, so anything but its own shape would read beyond it.
    assert mask_TR is None or (mask_TR.is_contiguous() and mask_TR.shape == (n_rows, a.d_out))
    y_TO, h_TR = x_TI.new_empty(n_rows, weight.d_out), x_TI.new_empty(n_rows, a.d_out)
    pointers = (
        None if x is None else x.data_ptr()
        for x in (weight.numbers, bias_O, a.numbers, b.numbers, mask_TR, x_TI, h_TR, y_TO)
    )
    _calls().panel_site(n_rows, weight.d_out, weight.d_in, a.d_out, *pointers)
    return y_TO


def _call(y_TO: Tensor, x_TI: Tensor, weight: Panels | Tensor, *, adds: bool, bias_O: Tensor | None) -> None:
    x_TI = _rows(x_TI)
    if isinstance(weight, Panels):
        # A stride of zero tells the kernel that the weight has been laid out.
        d_in, w, stride = weight.d_in, weight.numbers, 0
    else:
        d_in, w = weight.shape[1], _rows(weight)
        stride = w.stride(0)
    assert x_TI.shape[1] == d_in, (x_TI.shape, d_in)
    check_bf16(y_TO, x_TI, w)
    assert bias_O is None or bias_O.dtype == torch.float32
    bias = None if bias_O is None else bias_O.data_ptr()
    pointers = (w.data_ptr(), stride, x_TI.data_ptr(), x_TI.stride(0), y_TO.data_ptr(), y_TO.stride(0))
    _calls().panel_product(y_TO.shape[0], y_TO.shape[1], d_in, *pointers, 0, int(adds), bias)


def check_bf16(*numbers: Tensor) -> None:
    """The kernels take addresses, behind which any other numbers would be read as if they were bf16."""
    for x in numbers:
        assert x.dtype == torch.bfloat16, x.dtype


def _rows(x_TI: Tensor) -> Tensor:
    """The same, with each row's numbers side by side."""
    return x_TI if x_TI.stride(1) == 1 and x_TI.stride(0) > 0 else x_TI.contiguous()

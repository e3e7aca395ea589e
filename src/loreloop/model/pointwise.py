"""Norm and gate as single steps that keep little for their backward pass: their inputs, which are kept anyway.

Legend: T rows, D width, F feed-forward width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from loreloop.kernels import cpu as kernels


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / √(mean x² + eps) · weight over the last dimension; computed in fp32, given in `dtype`."""
    # autograd's wrapper takes as long as the work on a few rows
    return (_RmsNorm.apply if torch.is_grad_enabled() else _rms_norm)(x_TD, weight_D, eps, dtype)


def add_rms_norm(
    x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + delta, and `rms_norm` of it; the same numbers as one after the other."""
    # With gradients the sum and the norm are separate nodes of the graph, since both results are used further on.
    if not torch.is_grad_enabled() and _in_kernel(x_TD, dtype) and delta_TD.dtype == dtype:
        return kernels.add_rms_norm(x_TD, delta_TD, weight_D, eps)
    sum_TD = x_TD + delta_TD
    return sum_TD, rms_norm(sum_TD, weight_D, eps, dtype)


def gated_silu(gate_up_TF2: Tensor) -> Tensor:
    """silu(gate) · up, where gate is the first half of the columns and up the second."""
    return (_GatedSilu.apply if torch.is_grad_enabled() else _gated_silu)(gate_up_TF2)


def gated_silu_backward(gate_up_TF2: Tensor, dy_TF: Tensor) -> Tensor:
    """The gradient of `gated_silu`'s input from that of its result."""
    if _gate_in_kernel(gate_up_TF2):
        return kernels.gated_silu_backward(gate_up_TF2, dy_TF)
    gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
    # Computed again instead of kept: the input is in memory anyway, and the rest of the step is elementwise.
    sigmoid_TF = gate_TF.sigmoid()
    silu_TF = gate_TF * sigmoid_TF
    # Both halves are written into one tensor, in the layout that the product behind it takes.
    grad_TF2 = torch.empty_like(gate_up_TF2)
    n = gate_TF.shape[-1]
    torch.mul(dy_TF, silu_TF, out=grad_TF2[..., n:])
    # d silu = σ + silu · (1 − σ)
    slope_TF = torch.addcmul(sigmoid_TF, silu_TF, 1 - sigmoid_TF)
    torch.mul(slope_TF.mul_(up_TF), dy_TF, out=grad_TF2[..., :n])
    return grad_TF2


def _rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    if _in_kernel(x_TD, dtype):
        # The fused kernel also computes the plain norm, so that the two can never differ in a bit.
        return kernels.add_rms_norm(x_TD, None, weight_D, eps)[1]
    # In fp32 whatever comes in: the mean of squares of a wide bf16 row would lose most of its digits.
    return F.rms_norm(x_TD.float(), weight_D.shape, weight_D, eps).to(dtype)


def _in_kernel(x_TD: Tensor, dtype: torch.dtype) -> bool:
    """The residual stream's norms; those of heads are strided and few."""
    return x_TD.dim() == 2 and x_TD.dtype == torch.float32 and x_TD.is_contiguous() and kernels.supports(x_TD, dtype)


def _gated_silu(gate_up_TF2: Tensor) -> Tensor:
    if _gate_in_kernel(gate_up_TF2):
        return kernels.gated_silu(gate_up_TF2)
    gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
    return F.silu(gate_TF) * up_TF


def _gate_in_kernel(gate_up_TF2: Tensor) -> bool:
    return gate_up_TF2.is_contiguous() and kernels.supports(gate_up_TF2, gate_up_TF2.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        # The input is the residual stream, which is kept for the layer anyway; the scale is made again from it.
        ctx.save_for_backward(x_TD, weight_D)
        ctx.eps = eps
        return _rms_norm(x_TD, weight_D, eps, dtype)

    @staticmethod
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor, None, None, None]:
        x_TD, weight_D = ctx.saved_tensors
        if _in_kernel(x_TD, dy_TD.dtype):
            return kernels.rms_norm_backward(x_TD, dy_TD, weight_D, ctx.eps), None, None, None
        x = x_TD.float()
        scale_T1 = (x.square().mean(-1, keepdim=True) + ctx.eps).rsqrt_()
        dn_TD = dy_TD.float() * weight_D
        # The norm removes the part of the gradient that lies along x: scaling x changes nothing in its result.
        along_T1 = (dn_TD * x).mean(-1, keepdim=True).mul_(scale_T1 * scale_T1)
        dx_TD = dn_TD.sub_(x * along_T1).mul_(scale_T1)
        return dx_TD.to(x_TD.dtype), None, None, None


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_TF2: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_TF2)
        return _gated_silu(gate_up_TF2)

    @staticmethod
    def backward(ctx: Any, dy_TF: Tensor) -> Tensor:
        (gate_up_TF2,) = ctx.saved_tensors
        return gated_silu_backward(gate_up_TF2, dy_TF)

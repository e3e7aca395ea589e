"""Attention of a few queries a sequence: the fused forward pass, and a backward pass that keeps the scores.

The fused kernel's own backward pass is made for long sequences; for a dozen rows it costs several times the work.

Legend: B sequences, G key/value heads, R rows (queries × query heads of a group), K keys, E head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def few_queries(q_BGRE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask_B1RK: Tensor) -> Tensor:
    """softmax(q·k/√E + mask)·v, (B, G, R, E). The backward pass holds all B·G·R·K scores at once."""
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q_BGRE, k_BGKE, v_BGKE, attn_mask=mask_B1RK)
    return _FewQueries.apply(q_BGRE, k_BGKE, v_BGKE, mask_B1RK)


class _FewQueries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BGRE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask_B1RK: Tensor) -> Tensor:
        ctx.save_for_backward(q_BGRE, k_BGKE, v_BGKE, mask_B1RK)
        return F.scaled_dot_product_attention(q_BGRE, k_BGKE, v_BGKE, attn_mask=mask_B1RK)

    @staticmethod
    def backward(ctx: Any, do_BGRE: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With weights p and scores s: dv = pᵀ·do, dp = do·vᵀ, ds = p ∘ (dp − Σ dp∘p), dq = ds·k, dk = dsᵀ·q."""
        q_BGRE, k_BGKE, v_BGKE, mask_B1RK = ctx.saved_tensors
        scale = 1 / math.sqrt(q_BGRE.shape[-1])
        p_BGRK = (q_BGRE @ k_BGKE.transpose(-1, -2)).float().mul_(scale).add_(mask_B1RK).softmax(-1)
        dv_BGKE = p_BGRK.to(do_BGRE.dtype).transpose(-1, -2) @ do_BGRE
        ds_BGRK = (do_BGRE @ v_BGKE.transpose(-1, -2)).float()
        ds_BGRK.sub_((ds_BGRK * p_BGRK).sum(-1, keepdim=True)).mul_(p_BGRK).mul_(scale)
        ds_BGRK = ds_BGRK.to(do_BGRE.dtype)
        return ds_BGRK @ k_BGKE, ds_BGRK.transpose(-1, -2) @ q_BGRE, dv_BGKE, None

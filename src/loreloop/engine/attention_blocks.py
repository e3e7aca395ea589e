"""Causal attention of one short sequence: the fused forward pass, and a backward pass in plain products.

The fused kernel's own backward pass walks tiles of 64 in one head at a time; products over all heads and 128 queries
take half as long, up to a few hundred tokens. Beyond, their scores leave the cache, and the fused kernel is faster.

Legend: H query heads, G key/value heads, P query heads a group, Q queries = keys, B queries of a block, K keys up to a
block's end, E head width.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 128
LONGEST = 512


def causal_attention(q_HQE: Tensor, k_GQE: Tensor, v_GQE: Tensor) -> Tensor:
    """softmax(q·k/√E)·v with each query seeing the keys up to its own, (H, Q, E)."""
    if not torch.is_grad_enabled() or q_HQE.shape[1] > LONGEST:
        return _fused(q_HQE, k_GQE, v_GQE)
    return _Causal.apply(q_HQE, k_GQE, v_GQE)


def _fused(q_HQE: Tensor, k_GQE: Tensor, v_GQE: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q_HQE[None], k_GQE[None], v_GQE[None], is_causal=True, enable_gqa=True)[0]


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_HQE: Tensor, k_GQE: Tensor, v_GQE: Tensor) -> Tensor:
        o_HQE = _fused(q_HQE, k_GQE, v_GQE)
        ctx.save_for_backward(q_HQE, k_GQE, v_GQE, o_HQE)
        return o_HQE

    @staticmethod
    def backward(ctx: Any, do_HQE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `attention_few`, with Σ dp∘p taken as Σ do∘o; gradients of keys and values add up in fp32."""
        q_HQE, k_GQE, v_GQE, o_HQE = ctx.saved_tensors
        k_GQE, v_GQE = k_GQE.contiguous(), v_GQE.contiguous()
        n_groups, n_queries, d_head = k_GQE.shape
        along_HQ1 = (do_HQE.float() * o_HQE.float()).sum(-1, keepdim=True)
        q_GPQE, do_GPQE, along_GPQ1 = (x.unflatten(0, (n_groups, -1)) for x in (q_HQE, do_HQE, along_HQ1))
        dq_GPQE = torch.empty(q_GPQE.shape, dtype=q_HQE.dtype, device=q_HQE.device)
        dk_GQE, dv_GQE = (torch.zeros(k_GQE.shape, device=k_GQE.device) for _ in range(2))
        scale = 1 / math.sqrt(d_head)
        for start in range(0, n_queries, BLOCK):
            stop = min(start + BLOCK, n_queries)
            # A group's query heads stand as rows over their one key head.
            q_GBE, do_GBE, along_GB1 = (x[:, :, start:stop].flatten(1, 2) for x in (q_GPQE, do_GPQE, along_GPQ1))
            k_GKE, v_GKE = k_GQE[:, :stop], v_GQE[:, :stop]
            score_GBK = (q_GBE @ k_GKE.transpose(1, 2)).float().mul_(scale)
            score_GBK[:, :, start:].add_(_later(stop - start, q_GPQE.shape[1], q_HQE.device))
            p_GBK = score_GBK.softmax(-1)
            dv_GQE[:, :stop] += p_GBK.to(do_GBE.dtype).transpose(1, 2) @ do_GBE
            ds_GBK = (do_GBE @ v_GKE.transpose(1, 2)).float().sub_(along_GB1).mul_(p_GBK).mul_(scale).to(q_HQE.dtype)
            dq_GPQE[:, :, start:stop] = (ds_GBK @ k_GKE).unflatten(1, (-1, stop - start))
            dk_GQE[:, :stop] += ds_GBK.transpose(1, 2) @ q_GBE
        return dq_GPQE.flatten(0, 1), dk_GQE.to(k_GQE.dtype), dv_GQE.to(v_GQE.dtype)


@functools.lru_cache(maxsize=32)
def _later(n_queries: int, n_repeats: int, device: torch.device) -> Tensor:
    """(repeats · queries, queries): -∞ where a key stands behind the query, else 0."""
    return torch.full((n_queries, n_queries), float("-inf"), device=device).triu(1).repeat(n_repeats, 1)

"""Attention of some queries over some keys, in one place for training and for sampling.

The queries are the last of the keys' positions (causal, aligned at the end). Knows neither segments nor pages.

Legend: Q queries, K keys, H query heads, G key/value heads, E head width, B sequences.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

NEVER = float("-inf")


class Attention(Protocol):
    """How scores become outputs; the same object serves a whole engine."""

    @property
    def takes_masks(self) -> bool: ...

    def causal(self, q_QHE: Tensor, k_KGE: Tensor, v_KGE: Tensor, mask_QK: Tensor | None = None) -> Tensor:
        """One sequence: query i sees keys 0 … K-Q+i, or what the mask says. Gives (Q, H, E)."""
        ...

    def single(self, q_BHE: Tensor, k_BKGE: Tensor, v_BKGE: Tensor, n_keys_B: Tensor) -> Tensor:
        """One query a sequence, over the first n of its padded keys. Gives (B, H, E)."""
        ...


class FastAttention:
    """The library's fused attention."""

    takes_masks = True

    def causal(self, q_QHE: Tensor, k_KGE: Tensor, v_KGE: Tensor, mask_QK: Tensor | None = None) -> Tensor:
        n_queries, n_keys = q_QHE.shape[0], k_KGE.shape[0]
        mask = mask_QK
        if mask is None and n_queries != n_keys:
            mask = _end_aligned(n_queries, n_keys, q_QHE.device)
        o = F.scaled_dot_product_attention(
            q_QHE.transpose(0, 1)[None],
            k_KGE.transpose(0, 1)[None],
            v_KGE.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=True,
        )
        return o[0].transpose(0, 1)

    def single(self, q_BHE: Tensor, k_BKGE: Tensor, v_BKGE: Tensor, n_keys_B: Tensor) -> Tensor:
        seen_B1K = torch.arange(k_BKGE.shape[1], device=q_BHE.device)[None, None] < n_keys_B[:, None, None]
        # A group's query heads stand as rows over their one key head, so that keys are not repeated.
        q_BGPE = q_BHE.unflatten(1, (k_BKGE.shape[2], -1))
        k_BGKE, v_BGKE = k_BKGE.transpose(1, 2), v_BKGE.transpose(1, 2)
        o_BGPE = F.scaled_dot_product_attention(q_BGPE, k_BGKE, v_BGKE, attn_mask=seen_B1K[:, None])
        return o_BGPE.flatten(1, 2)


class FixedAttention:
    """Fixed shapes: queries in tiles of 16, keys in chunks of 64 counted from position 0, added up in order, fp32.

    A query's result is then the same numbers whatever else is computed beside it. Chunks beyond a query's reach add
    exact zeros.
    """

    takes_masks = False
    query_tile = 16
    key_chunk = 64

    def causal(self, q_QHE: Tensor, k_KGE: Tensor, v_KGE: Tensor, mask_QK: Tensor | None = None) -> Tensor:
        assert mask_QK is None, "chunks are counted from position 0 of one sequence"
        first = k_KGE.shape[0] - q_QHE.shape[0]
        k_HKE, v_HKE = self._keys(k_KGE, q_QHE.shape[1]), self._keys(v_KGE, q_QHE.shape[1])
        tiles = [
            self._tile(tile_QHE, k_HKE, v_HKE, first + start)
            for start, tile_QHE in zip(
                range(0, q_QHE.shape[0], self.query_tile), q_QHE.split(self.query_tile), strict=True
            )
        ]
        return torch.cat(tiles)

    def single(self, q_BHE: Tensor, k_BKGE: Tensor, v_BKGE: Tensor, n_keys_B: Tensor) -> Tensor:
        rows = zip(q_BHE, k_BKGE, v_BKGE, n_keys_B.tolist(), strict=True)
        return torch.cat([self.causal(q_HE[None], k_KGE[:n], v_KGE[:n]) for q_HE, k_KGE, v_KGE, n in rows])

    def _keys(self, k_KGE: Tensor, n_heads: int) -> Tensor:
        """(H, K, E) fp32, K padded to whole chunks."""
        k_KGE = F.pad(k_KGE.float(), (0, 0, 0, 0, 0, -k_KGE.shape[0] % self.key_chunk))
        return k_KGE.repeat_interleave(n_heads // k_KGE.shape[1], dim=1).transpose(0, 1).contiguous()

    def _tile(self, q_QHE: Tensor, k_HKE: Tensor, v_HKE: Tensor, first: int) -> Tensor:
        n_rows, _, d_head = q_QHE.shape
        q = F.pad(q_QHE.float(), (0, 0, 0, 0, 0, self.query_tile - n_rows)).transpose(0, 1).contiguous()
        q_HQE = q * (1 / math.sqrt(d_head))
        position_Q1 = first + torch.arange(self.query_tile, device=q.device)[:, None]
        top_HQ1 = torch.full((*q_HQE.shape[:2], 1), NEVER, device=q.device)
        total_HQ1, sum_HQE = torch.zeros_like(top_HQ1), torch.zeros_like(q_HQE)
        for start in range(0, min(k_HKE.shape[1], first + self.query_tile), self.key_chunk):
            chunk = slice(start, start + self.key_chunk)
            reach = torch.arange(start, start + self.key_chunk, device=q.device)[None] <= position_Q1
            score_HQK = torch.bmm(q_HQE, k_HKE[:, chunk].transpose(1, 2)).masked_fill(~reach, NEVER)
            new_top = torch.maximum(top_HQ1, score_HQK.amax(-1, keepdim=True))
            weight_HQK, keep_HQ1 = (score_HQK - new_top).exp(), (top_HQ1 - new_top).exp()
            total_HQ1 = total_HQ1 * keep_HQ1 + weight_HQK.sum(-1, keepdim=True)
            sum_HQE = sum_HQE * keep_HQ1 + torch.bmm(weight_HQK, v_HKE[:, chunk])
            top_HQ1 = new_top
        return (sum_HQE / total_HQ1).transpose(0, 1)[:n_rows].to(q_QHE.dtype)


def _end_aligned(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """(Q, K) bool: which key each query sees."""
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_queries)

"""Attention of some queries over some keys, in one place for training and for sampling.

Keys are counted from position 0 of their sequence, and a query sees those up to its own position. Training asks for
all positions at once and decoding for one; both must round alike, or the sampler's log-probabilities are not the
trainer's. What is not plain about a layer's attention comes as its rules. Forward only; `tree_backward` has the
gradients. Knows neither segments nor pages.

Legend: Q queries, K keys, H query heads, G key/value heads, P query heads a group, R queries of a group (Q × P,
padded), E head width, B sequences, N rows of queries or keys.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from loreloop.kernels import attention as kernels
from loreloop.model.attention_rules import PLAIN, AttentionRules

NEVER, LEAST = float("-inf"), -1e30


class Reach:
    """Where the queries of B sequences stand: query i of sequence b at position first_B[b] + i."""

    def __init__(self, first_B: Tensor, n_queries: int, n_keys: int) -> None:
        self.first_B, self.n_queries, self.n_keys = first_B, n_queries, n_keys
        self._masks: dict[tuple[int, int, int | None, torch.dtype], Tensor] = {}

    def mask(self, n_repeats: int, n_rows: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
        """(B, 1, rows, K): 0 where a query sees a key, -∞ elsewhere; made once for all layers.

        Each query stands for `n_repeats` rows; rows behind the last query's are as those of later positions.
        """
        key = (n_repeats, n_rows, window, dtype)
        # Layers ask for the same mask one after the other, and making it costs as much as a small attention.
        if key not in self._masks:
            device = self.first_B.device
            position_BR = self.first_B[:, None] + torch.arange(n_rows, device=device) // n_repeats
            key_K = torch.arange(self.n_keys, device=device)
            hidden_BRK = key_K > position_BR[:, :, None]
            if window is not None:
                hidden_BRK |= key_K <= position_BR[:, :, None] - window
            mask_BRK = torch.zeros(hidden_BRK.shape, dtype=dtype, device=device).masked_fill_(hidden_BRK, NEVER)
            self._masks[key] = mask_BRK[:, None]
        return self._masks[key]


class Attention(Protocol):
    """How scores become outputs; the same object serves a whole engine."""

    def causal(self, q_QHE: Tensor, k_KGE: Tensor, v_KGE: Tensor, rules: AttentionRules = PLAIN) -> Tensor:
        """One sequence, whose last positions are the queries'. Gives (Q, H, E)."""
        ...

    def batched(
        self, q_BQHE: Tensor, k_BKGE: Tensor, v_BKGE: Tensor, reach: Reach, rules: AttentionRules = PLAIN
    ) -> Tensor:
        """B sequences side by side, keys padded (with finite numbers) to a multiple of `KEY_BLOCK`.

        Queries padded behind a sequence's last give numbers that mean nothing. Gives (B, Q, H, E).
        """
        ...


KEY_BLOCK = 64


class FastAttention:
    """Our own kernel where there is one (bf16 on a CPU), in which a query's result depends on its own keys alone.

    Elsewhere the library's fused attention. Its kernels add up the keys in vector lanes and blocks, and the number of
    all keys may change the order of additions: results are right to rounding.
    """

    query_block = 32
    least_rows = 4
    piece = 256  # queries of a call whose scores are masked or computed by steps
    few_queries = 32  # up to here, a group's query heads share a product

    def causal(self, q_QHE: Tensor, k_KGE: Tensor, v_KGE: Tensor, rules: AttentionRules = PLAIN) -> Tensor:
        """By our kernel, or the library's causal one where all keys are queries too, or `batched`; (Q, H, E)."""
        if kernels.supports(q_QHE, k_KGE.shape[-1], v_KGE.shape[-1]):
            first_1 = torch.tensor([k_KGE.shape[0] - q_QHE.shape[0]])
            return kernels.attend_queries(q_QHE[None], k_KGE[None], v_KGE[None], first_1, kernel_rules(rules))[0]
        if rules.window is not None and rules.window >= k_KGE.shape[0]:
            rules = rules.without_window()
        if not rules.plain:
            return self._by_pieces(q_QHE, k_KGE, v_KGE, rules)
        if v_KGE.shape[-1] < k_KGE.shape[-1]:
            return self.causal(q_QHE, k_KGE, _widened(v_KGE, k_KGE))[..., : v_KGE.shape[-1]]
        n_queries, n_keys = q_QHE.shape[0], k_KGE.shape[0]
        if n_queries < n_keys:
            # Here the queries are the end of the sequence, for which the library's causal mask would be aligned at the
            # wrong corner.
            reach = Reach(torch.tensor([n_keys - n_queries], device=q_QHE.device), n_queries, _whole(n_keys))
            return self.batched(q_QHE[None], _padded(k_KGE)[None], _padded(v_KGE)[None], reach)[0]
        # Padded keys lie behind every query, so the causal mask hides them; padded queries' results are cut off.
        q_HQE, k_GKE, v_GKE = (_padded(t, self.query_block).transpose(0, 1) for t in (q_QHE, k_KGE, v_KGE))
        o_1HQE = F.scaled_dot_product_attention(q_HQE[None], k_GKE[None], v_GKE[None], is_causal=True, enable_gqa=True)
        return o_1HQE[0].transpose(0, 1)[:n_queries]

    def batched(
        self, q_BQHE: Tensor, k_BKGE: Tensor, v_BKGE: Tensor, reach: Reach, rules: AttentionRules = PLAIN
    ) -> Tensor:
        """One call for all sequences, (B, Q, H, E)."""
        if kernels.supports(q_BQHE, k_BKGE.shape[-1], v_BKGE.shape[-1]):
            return kernels.attend_queries(q_BQHE, k_BKGE, v_BKGE, reach.first_B, kernel_rules(rules))
        if v_BKGE.shape[-1] < k_BKGE.shape[-1]:
            return self.batched(q_BQHE, k_BKGE, _widened(v_BKGE, k_BKGE), reach, rules)[..., : v_BKGE.shape[-1]]
        if not rules.plain_scores and reach.n_queries > self.piece:
            return self._batched_by_pieces(q_BQHE, k_BKGE, v_BKGE, reach, rules)
        # With many queries the mask of repeated rows would be larger than the keys that are saved.
        n_groups = k_BKGE.shape[2] if reach.n_queries <= self.few_queries else q_BQHE.shape[2]
        # A group's query heads stand as rows over their one key head, so that keys are not repeated.
        q_BQGPE = q_BQHE.unflatten(2, (n_groups, -1))
        n_repeats = q_BQGPE.shape[3]
        q_BGRE = q_BQGPE.transpose(1, 2).flatten(2, 3)
        # With fewer rows the library takes another product, which adds up in another order.
        if (n_missing := -q_BGRE.shape[2] % self.least_rows) > 0:
            q_BGRE = F.pad(q_BGRE, (0, 0, 0, n_missing))
        k_BGKE, v_BGKE = k_BKGE.transpose(1, 2), v_BKGE.transpose(1, 2)
        if rules.plain_scores:
            mask_B1RK = reach.mask(n_repeats, q_BGRE.shape[2], q_BQHE.dtype, rules.window)
            o_BGRE = F.scaled_dot_product_attention(q_BGRE, k_BGKE, v_BGKE, attn_mask=mask_B1RK, enable_gqa=True)
        else:
            mask_B1RK = reach.mask(n_repeats, q_BGRE.shape[2], torch.float32, rules.window)
            o_BGRE = _by_steps(q_BGRE, k_BGKE, v_BGKE, mask_B1RK, rules)
        o_BGQPE = o_BGRE[:, :, : reach.n_queries * n_repeats].unflatten(2, (-1, n_repeats))
        return o_BGQPE.transpose(1, 2).flatten(2, 3)

    def _by_pieces(self, q_QHE: Tensor, k_KGE: Tensor, v_KGE: Tensor, rules: AttentionRules) -> Tensor:
        """A few queries at a time, each piece with the keys that it can see: with a window these are few, and without
        one masks and scores stay small."""
        n_earlier, outputs = k_KGE.shape[0] - q_QHE.shape[0], []
        for start in range(0, q_QHE.shape[0], self.piece):
            q_piece = q_QHE[start : start + self.piece]
            first, stop = n_earlier + start, n_earlier + start + len(q_piece)
            oldest = 0 if rules.window is None else max(0, first - rules.window + 1)
            keys = slice(oldest, stop)
            reach = Reach(torch.tensor([first - oldest], device=q_QHE.device), len(q_piece), _whole(stop - oldest))
            k_piece, v_piece = _padded(k_KGE[keys])[None], _padded(v_KGE[keys])[None]
            outputs.append(self.batched(q_piece[None], k_piece, v_piece, reach, rules)[0])
        return torch.cat(outputs)

    def _batched_by_pieces(
        self, q_BQHE: Tensor, k_BKGE: Tensor, v_BKGE: Tensor, reach: Reach, rules: AttentionRules
    ) -> Tensor:
        """A few queries of every sequence at a time, as scores of all at once may take tens of gigabytes."""
        outputs = []
        for start in range(0, reach.n_queries, self.piece):
            q_piece = q_BQHE[:, start : start + self.piece]
            # A reach of its own, whose mask goes when the piece is done.
            within = Reach(reach.first_B + start, q_piece.shape[1], reach.n_keys)
            outputs.append(self.batched(q_piece, k_BKGE, v_BKGE, within, rules))
        return torch.cat(outputs, 1)


def kernel_rules(rules: AttentionRules) -> kernels.Rules:
    """The same as the kernels take them."""
    return kernels.PLAIN if rules.plain else kernels.Rules(rules.window, rules.cap, rules.sinks_H)


def _by_steps(q_BGRE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask_B1RK: Tensor, rules: AttentionRules) -> Tensor:
    """Attention whose scores no fused kernel computes: product, cap, mask, softmax with sinks in fp32, product."""
    n_heads, n_groups = q_BGRE.shape[1], k_BGKE.shape[1]
    if n_groups < n_heads:
        k_BGKE, v_BGKE = (x.repeat_interleave(n_heads // n_groups, 1) for x in (k_BGKE, v_BGKE))
    score_BGRK = (q_BGRE @ k_BGKE.transpose(2, 3)).float().mul_(1 / math.sqrt(q_BGRE.shape[-1]))
    if rules.cap is not None:
        score_BGRK = score_BGRK.div_(rules.cap).tanh_().mul_(rules.cap)
    score_BGRK += mask_B1RK
    if rules.sinks_H is None:
        return score_BGRK.softmax(-1).to(v_BGKE.dtype) @ v_BGKE
    # The rows of a group are its query heads by turns.
    sink_GR = rules.sinks_H.view(n_heads, -1).repeat(1, -(-q_BGRE.shape[2] // (len(rules.sinks_H) // n_heads)))
    sink_BGR1 = sink_GR[None, :, : q_BGRE.shape[2], None].expand(len(q_BGRE), -1, -1, -1)
    # One more score takes its share of the softmax; what it would give is nothing, so its column is cut off.
    weight_BGRK = torch.cat((score_BGRK, sink_BGR1), -1).softmax(-1)[..., :-1]
    return weight_BGRK.to(v_BGKE.dtype) @ v_BGKE


class FixedAttention:
    """Fixed shapes: queries in tiles of 16, keys in chunks of 64 counted from position 0, added up in order, fp32.

    A query's result is then the same numbers whatever else is computed beside it. Chunks beyond a query's reach add
    exact zeros.
    """

    query_tile = 16
    key_chunk = 64

    def causal(self, q_QHE: Tensor, k_KGE: Tensor, v_KGE: Tensor, rules: AttentionRules = PLAIN) -> Tensor:
        """The sequence by itself, tile by tile; (Q, H, E)."""
        return self._from(k_KGE.shape[0] - q_QHE.shape[0], q_QHE, k_KGE, v_KGE, rules)

    def batched(
        self, q_BQHE: Tensor, k_BKGE: Tensor, v_BKGE: Tensor, reach: Reach, rules: AttentionRules = PLAIN
    ) -> Tensor:
        """Sequence after sequence, each as `causal` would compute it; (B, Q, H, E)."""
        # Queries padded behind a sequence's last see no more than the keys there are.
        firsts = reach.first_B.tolist()
        rows = zip(firsts, q_BQHE, k_BKGE, v_BKGE, (first + reach.n_queries for first in firsts), strict=True)
        return torch.stack([self._from(first, q_QHE, k[:stop], v[:stop], rules) for first, q_QHE, k, v, stop in rows])

    def _from(self, first: int, q_QHE: Tensor, k_KGE: Tensor, v_KGE: Tensor, rules: AttentionRules) -> Tensor:
        """The queries of positions first, first + 1, …"""
        # All keys are widened at once, as every tile needs all of those before it.
        k_HKE, v_HKE = self._keys(k_KGE, q_QHE.shape[1]), self._keys(v_KGE, q_QHE.shape[1])
        tiles = [
            self._tile(tile_QHE, k_HKE, v_HKE, first + start, rules)
            for start, tile_QHE in zip(
                range(0, q_QHE.shape[0], self.query_tile), q_QHE.split(self.query_tile), strict=True
            )
        ]
        return torch.cat(tiles)

    def _keys(self, k_KGE: Tensor, n_heads: int) -> Tensor:
        """(H, K, E) fp32, K padded to whole chunks."""
        # Zeros are finite, and they are masked: with a score of -∞ they have a weight of exactly zero.
        k_KGE = F.pad(k_KGE.float(), (0, 0, 0, 0, 0, -k_KGE.shape[0] % self.key_chunk))
        return k_KGE.repeat_interleave(n_heads // k_KGE.shape[1], dim=1).transpose(0, 1).contiguous()

    def _tile(self, q_QHE: Tensor, k_HKE: Tensor, v_HKE: Tensor, first: int, rules: AttentionRules) -> Tensor:
        n_rows, _, d_head = q_QHE.shape
        q = F.pad(q_QHE.float(), (0, 0, 0, 0, 0, self.query_tile - n_rows)).transpose(0, 1).contiguous()
        # Scaled before the product, on the fewer numbers.
        q_HQE = q * (1 / math.sqrt(d_head))
        position_Q1 = first + torch.arange(self.query_tile, device=q.device)[:, None]
        # Not -∞: before its window a row sees no key of a chunk, and the difference of two infinities is no number.
        top_HQ1 = torch.full((*q_HQE.shape[:2], 1), LEAST, device=q.device)
        total_HQ1 = torch.zeros_like(top_HQ1)
        if rules.sinks_H is not None:
            # The sink is the first score of all: it counts in the sum of weights and has no value.
            top_HQ1 = rules.sinks_H[:, None, None].expand_as(top_HQ1)
            total_HQ1 = torch.ones_like(total_HQ1)
        sum_HQE = torch.zeros(*q_HQE.shape[:2], v_HKE.shape[-1], device=q.device)
        # The softmax is taken online (Milakov & Gimelshein, 2018): a new maximum rescales what has been summed so far.
        oldest = 0 if rules.window is None else max(0, first - rules.window + 1)
        # Chunks that no row of the tile sees would add exact zeros.
        begin = oldest - oldest % self.key_chunk
        for start in range(begin, min(k_HKE.shape[1], first + self.query_tile), self.key_chunk):
            chunk = slice(start, start + self.key_chunk)
            key_1K = torch.arange(start, start + self.key_chunk, device=q.device)[None]
            reach = key_1K <= position_Q1
            if rules.window is not None:
                reach &= key_1K > position_Q1 - rules.window
            score_HQK = torch.bmm(q_HQE, k_HKE[:, chunk].transpose(1, 2))
            if rules.cap is not None:
                score_HQK = rules.cap * torch.tanh(score_HQK / rules.cap)
            score_HQK = score_HQK.masked_fill(~reach, NEVER)
            new_top = torch.maximum(top_HQ1, score_HQK.amax(-1, keepdim=True))
            weight_HQK, keep_HQ1 = (score_HQK - new_top).exp(), (top_HQ1 - new_top).exp()
            total_HQ1 = total_HQ1 * keep_HQ1 + weight_HQK.sum(-1, keepdim=True)
            sum_HQE = sum_HQE * keep_HQ1 + torch.bmm(weight_HQK, v_HKE[:, chunk])
            top_HQ1 = new_top
        return (sum_HQE / total_HQ1).transpose(0, 1)[:n_rows].to(q_QHE.dtype)


def _whole(n: int, block: int = KEY_BLOCK) -> int:
    return n + -n % block


def _widened(v: Tensor, k: Tensor) -> Tensor:
    """Values of fewer numbers than keys, with zeros behind: the library's fast kernels want both alike."""
    return F.pad(v, (0, k.shape[-1] - v.shape[-1]))


def _padded(x_NHE: Tensor, block: int = KEY_BLOCK) -> Tensor:
    """Zeros behind, up to a whole block."""
    n_missing = -x_NHE.shape[0] % block
    return F.pad(x_NHE, (0, 0, 0, 0, 0, n_missing)) if n_missing else x_NHE

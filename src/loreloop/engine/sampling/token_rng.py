"""Random draws that do not depend on what else is drawn: one uniform number a token, by counter.

Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") turns (seed, sample, position,
stream) into a number in [0, 1); the inverse of the cumulative distribution, in token order, turns that into a token.

Legend: B rows, V vocabulary, N blocks of the vocabulary, I tokens of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loreloop.kernels import vocab
from loreloop.kernels.vocab import BLOCK

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
SAMPLE_STREAM, ALTERNATIVE_STREAM = 0, 1


def philox(counters_B4: NDArray[np.uint64], keys_B2: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Ten rounds over 32-bit words held in uint64, (B, 4)."""
    # Held in 64 bits so that a product of two 32-bit words does not lose its high half.
    c0, c1, c2, c3 = (counters_B4[:, i].copy() for i in range(4))
    k0, k1 = keys_B2[:, 0].copy(), keys_B2[:, 1].copy()
    for _ in range(10):
        product0, product1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        high0, low0 = product0 >> np.uint64(32), product0 & np.uint64(MASK)
        high1, low1 = product1 >> np.uint64(32), product1 & np.uint64(MASK)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + np.uint64(WEYL[0])) & np.uint64(MASK), (k1 + np.uint64(WEYL[1])) & np.uint64(MASK)
    return np.stack((c0, c1, c2, c3), axis=1)


@dataclass(frozen=True)
class RngKey:
    """What a draw depends on, and nothing else."""

    seed: int
    sample_index: int
    position: int
    stream: int = SAMPLE_STREAM


def uniforms(keys: Sequence[RngKey]) -> NDArray[np.float64]:
    """One number in [0, 1) a key, with 53 random bits."""
    # Every field of a key goes into a word of its own, so no two keys share a counter.
    counters = np.array([(k.position, k.sample_index, k.stream, 0) for k in keys], np.uint32).reshape(-1, 4)
    seeds = np.array([(k.seed & MASK, (k.seed >> 32) & MASK) for k in keys], np.uint32).reshape(-1, 2)
    if (numbers := vocab.uniforms(counters, seeds)) is not None:
        return numbers
    words = philox(counters.astype(np.uint64), seeds.astype(np.uint64))
    return ((words[:, 0] << np.uint64(21)) ^ (words[:, 1] >> np.uint64(11))).astype(np.float64) * 2.0**-53


def draw_tokens(weight_BV: Tensor, block_BN: Tensor, uniform_B: Tensor) -> Tensor:
    """The token at which each row's cumulative weight passes its uniform number's share of the whole, (B,).

    `block_BN` are the weights' `block_sums`: few numbers are then added serially. Rows need not add up to one.
    """
    if vocab.supports(weight_BV):
        return vocab.draw(weight_BV, block_BN, uniform_B)
    vocab_size = weight_BV.shape[1]
    # In doubles, since a uniform number with 53 bits points between neighbours that fp32 sums cannot tell apart.
    block_ends = block_BN.to(torch.float64).cumsum(-1)
    wanted_B1 = uniform_B[:, None].to(torch.float64) * block_ends[:, -1:]
    block_B1 = torch.searchsorted(block_ends, wanted_B1, right=True).clamp_(max=block_ends.shape[1] - 1)
    # First the block is found and then the token in it, so that only a block of weights is added up serially.
    before_B1 = torch.where(block_B1 > 0, block_ends.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BI = block_B1 * BLOCK + torch.arange(BLOCK, device=weight_BV.device)
    inside = weight_BV.gather(1, inside_BI.clamp(max=vocab_size - 1)).to(torch.float64)
    inside.masked_fill_(inside_BI >= vocab_size, 0.0)
    within_B1 = torch.searchsorted(inside.cumsum(-1), wanted_B1 - before_B1, right=True).clamp_(max=BLOCK - 1)
    token_B = (block_B1 * BLOCK + within_B1)[:, 0]
    impossible = (token_B >= vocab_size) | (weight_BV.gather(1, token_B.clamp(max=vocab_size - 1)[:, None])[:, 0] <= 0)
    # Rounding at the end of a block, or of the row, may point behind its last possible token.
    return torch.where(impossible, _last_possible(weight_BV), token_B) if bool(impossible.any()) else token_B


def _last_possible(p_BV: Tensor) -> Tensor:
    index_V = torch.arange(p_BV.shape[1], device=p_BV.device)
    return torch.where(p_BV > 0, index_V, -1).amax(-1).clamp_(min=0)  # a row of NaN has none


@dataclass(frozen=True)
class Filter:
    """Which tokens a row may draw: its `top_k` likeliest (-1: all), of these the smallest set of mass `top_p`, of these
    those at least `min_p` times as likely as the likeliest."""

    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def on(self) -> bool:
        """Whether it drops anything at all."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def filtered(p_BV: Tensor, filters: Sequence[Filter]) -> Tensor:
    """Probabilities, or weights, with those that each row's filter drops set to zero."""
    p_BV = p_BV.clone()
    for row, (top_k, top_p, min_p) in enumerate((f.top_k, f.top_p, f.min_p) for f in filters):
        if 0 < top_k < p_BV.shape[1]:
            kept = p_BV[row].topk(top_k)
            p_BV[row] = torch.zeros_like(p_BV[row]).scatter_(0, kept.indices, kept.values)
        if top_p < 1:
            # Stable, so that equal probabilities are always dropped in the same order.
            ordered = p_BV[row].sort(descending=True, stable=True)
            # The mass before a token decides: the one that crosses the bound is still kept.
            reached = ordered.values.cumsum(0) - ordered.values
            dropped = reached >= top_p * ordered.values.sum()
            # With a `top_p` of zero the likeliest token remains.
            dropped[0] = False
            p_BV[row, ordered.indices[dropped]] = 0
        if min_p > 0:
            p_BV[row].masked_fill_(p_BV[row] < min_p * p_BV[row].amax(), 0)
    return p_BV

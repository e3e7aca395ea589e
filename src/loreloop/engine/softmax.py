"""The softmax over the vocabulary, for sampling and for training alike, so that both get the same numbers.

Sums go by blocks of tokens and then over the blocks: that order does not depend on how many rows are computed
together, nor on threads. Knows no adapters and no requests.

Legend: N rows, V vocabulary, B blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256  # tokens summed together first
CACHED_ROWS = 8  # on a CPU: rows whose fp32 logits stay in the cache between the passes over them


@dataclass(frozen=True)
class Softmax:
    """`weight_NV` is exp(logit − top), `block_NB` its sums by blocks; log p = logit − `normalizer_N1`. All fp32."""

    weight_NV: Tensor
    block_NB: Tensor
    normalizer_N1: Tensor

    @property
    def total_N1(self) -> Tensor:
        return self.block_NB.sum(-1, keepdim=True)


def softmax_of(logits_NV: Tensor) -> Softmax:
    """Leaves the fp32 logits as they are."""
    top_N1 = logits_NV.amax(-1, keepdim=True)
    weight_NV = (logits_NV - top_N1).exp_()
    block_NB = block_sums(weight_NV)
    return Softmax(weight_NV, block_NB, block_NB.sum(-1, keepdim=True).log_().add_(top_N1))


def block_sums(weight_NV: Tensor) -> Tensor:
    """(N, B), the last block being shorter where V is no multiple."""
    n_missing = -weight_NV.shape[1] % BLOCK
    whole_NV = F.pad(weight_NV, (0, n_missing)) if n_missing else weight_NV
    return whole_NV.unflatten(1, (-1, BLOCK)).sum(-1)


def piece_rows(device: torch.device) -> int | None:
    """How many rows to pass to `softmax_of` at a time; None: all there are."""
    return CACHED_ROWS if device.type == "cpu" else None

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

from loreloop.kernels import vocab
from loreloop.kernels.vocab import BLOCK

CACHED_ROWS = 8  # on a CPU: rows whose fp32 logits stay in the cache between the passes over them
KERNEL_ROWS = 32  # the kernels pass over them once


@dataclass(frozen=True)
class Softmax:
    """`weight_NV` is exp(logit − top), `block_NB` its sums by blocks; log p = logit − `normalizer_N1`. All fp32."""

    weight_NV: Tensor
    block_NB: Tensor
    total_N1: Tensor
    normalizer_N1: Tensor


def softmax_of(logits_NV: Tensor) -> Softmax:
    """Of bf16 or fp32 logits, which stay as they are."""
    # The kernels add in the same order as the lines below, block by block.
    if vocab.supports(logits_NV):
        return Softmax(*vocab.softmax(logits_NV))
    logits_NV = logits_NV.float()
    # Without taking the maximum off, e^logit of fp32 overflows from about 88 on.
    top_N1 = logits_NV.amax(-1, keepdim=True)
    weight_NV = (logits_NV - top_N1).exp_()
    block_NB = block_sums(weight_NV)
    total_N1 = block_NB.sum(-1, keepdim=True)
    return Softmax(weight_NV, block_NB, total_N1, total_N1.log().add_(top_N1))


def normalizer_of(logits_NV: Tensor) -> Tensor:
    """`softmax_of(…).normalizer_N1` alone."""
    return vocab.normalizer(logits_NV) if vocab.supports(logits_NV) else softmax_of(logits_NV).normalizer_N1


def to_probabilities(logits_NV: Tensor) -> Tensor:
    """`softmax_of(…).normalizer_N1`; the logits become probabilities in their own place."""
    if vocab.supports(logits_NV) and logits_NV.dtype == torch.bfloat16:
        return vocab.to_probabilities(logits_NV)
    softmax = softmax_of(logits_NV)
    logits_NV.copy_(softmax.weight_NV.div_(softmax.total_N1))
    return softmax.normalizer_N1


def block_sums(weight_NV: Tensor) -> Tensor:
    """(N, B), the last block being shorter where V is no multiple."""
    # Zeros fill the last block, and adding zeros changes no sum.
    n_missing = -weight_NV.shape[1] % BLOCK
    whole_NV = F.pad(weight_NV, (0, n_missing)) if n_missing else weight_NV
    return whole_NV.unflatten(1, (-1, BLOCK)).sum(-1)


def piece_rows(device: torch.device) -> int | None:
    """How many rows to pass to `softmax_of` at a time; None: all there are."""
    if device.type != "cpu":
        return None
    return KERNEL_ROWS if vocab.supports(torch.empty(0)) else CACHED_ROWS

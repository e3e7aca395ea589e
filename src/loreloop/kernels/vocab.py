"""Softmax over the vocabulary and draws from it as functions of tensors on a CPU; vocab.c does the work.

Legend: N rows, V vocabulary, B blocks.
"""

from __future__ import annotations

import functools
from ctypes import c_int64, c_void_p
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loreloop.kernels.build import library

BLOCK = 256  # tokens summed together first; vocab.c has the same


@functools.cache
def _calls() -> Any:
    calls: Any = library()
    if calls is not None:
        # Undeclared, ctypes would pass addresses as 32-bit integers.
        calls.vocab_softmax.argtypes = [c_int64] * 3 + [c_void_p] * 6
        calls.vocab_draw.argtypes = [c_int64] * 2 + [c_void_p, c_int64] * 2 + [c_void_p] * 2
        calls.vocab_uniforms.argtypes = [c_int64] + [c_void_p] * 3
        calls.vocab_softmax.restype = calls.vocab_draw.restype = calls.vocab_uniforms.restype = None
    return calls


def supports(x: Tensor) -> bool:
    """Whether there are kernels for logits, or weights, like these."""
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float32) and _calls() is not None


def softmax(logits_NV: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """e^(logit − top) (N, V), its sums by blocks (N, B) and over all (N, 1), and log Σ e^logit (N, 1); fp32."""
    n_rows, size = logits_NV.shape
    weight_NV, block_NB = torch.empty(n_rows, size), torch.empty(n_rows, -(-size // BLOCK))
    # Results are allocated here and only filled by the kernel, so that their memory belongs to the tensor library.
    total_N1, normalizer_N1 = torch.empty(n_rows, 1), torch.empty(n_rows, 1)
    _softmax(logits_NV, weight_NV, block_NB, total_N1, normalizer_N1, None)
    return weight_NV, block_NB, total_N1, normalizer_N1


def to_probabilities(logits_NV: Tensor) -> Tensor:
    """Log Σ e^logit (N, 1), fp32; the logits, bf16, become probabilities in their own place."""
    # The probabilities take the place of the logits, so both must be of one width.
    assert logits_NV.dtype == torch.bfloat16
    n_rows = len(logits_NV)
    total_N1, normalizer_N1 = torch.empty(n_rows, 1), torch.empty(n_rows, 1)
    _softmax(logits_NV, None, None, total_N1, normalizer_N1, logits_NV)
    return normalizer_N1


def normalizer(logits_NV: Tensor) -> Tensor:
    """Log Σ e^logit (N, 1), fp32."""
    total_N1, normalizer_N1 = (torch.empty(len(logits_NV), 1) for _ in range(2))
    _softmax(logits_NV, None, None, total_N1, normalizer_N1, None)
    return normalizer_N1


def _softmax(logits_NV: Tensor, *results: Tensor | None) -> None:
    # Where probabilities are wanted the kernel writes through this pointer, and a copy would take them instead of the
    # caller.
    assert results[-1] is None or results[-1].is_contiguous()
    logits_NV = logits_NV.contiguous()
    pointers = (None if x is None else x.data_ptr() for x in results)
    _calls().vocab_softmax(*logits_NV.shape, int(logits_NV.dtype == torch.bfloat16), logits_NV.data_ptr(), *pointers)


def draw(weight_NV: Tensor, block_NB: Tensor, uniform_N: Tensor) -> Tensor:
    """The token (N,) at which each row's cumulative weight passes its uniform number's share of the whole."""
    assert weight_NV.stride(1) == block_NB.stride(1) == 1 or weight_NV.shape[1] == 1
    # In fp32 a uniform number has 24 bits, too few to point at every unlikely token of a large vocabulary.
    uniform_N, token_N = uniform_N.double().contiguous(), torch.empty(len(weight_NV), dtype=torch.int64)
    _calls().vocab_draw(
        *weight_NV.shape,
        *(number for x in (weight_NV, block_NB) for number in (x.data_ptr(), x.stride(0))),
        uniform_N.data_ptr(),
        token_N.data_ptr(),
    )
    return token_N


def uniforms(counters_N4: NDArray[np.uint32], keys_N2: NDArray[np.uint32]) -> NDArray[np.float64] | None:
    """Philox4x32-10 of each counter and key as a number in [0, 1); None where there are no kernels."""
    if _calls() is None:
        return None
    # numpy's default dtype is the double that the kernel writes.
    uniform_N = np.empty(len(counters_N4))
    _calls().vocab_uniforms(len(uniform_N), *(x.ctypes.data for x in (counters_N4, keys_N2, uniform_N)))
    return uniform_N

"""Attention on a CPU as functions of tensors, unseen by autograd; attention.c has the order of its additions.

A query's result depends on its own keys alone, whichever of these functions computes it.

Legend: B sequences, Q queries, K keys, T rows, H query heads, G key/value heads, E width of queries and keys, V width
of values, S slots of the cache, N queries or keys.
"""

from __future__ import annotations

import functools
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loreloop.kernels.bf16_products import check_bf16
from loreloop.kernels.build import library

WIDTH_STEP, MOST_WIDTH = 32, 512  # of a head


@functools.cache
def _calls() -> Any:
    """The library, where it has these kernels: processors with vectors."""
    calls: Any = library()
    if not hasattr(calls, "attend_queries"):
        return None
    rules = [c_int64, c_float, c_void_p]
    calls.attend_queries.argtypes = [c_int64] * 7 + [c_void_p] + [c_void_p, c_int64, c_int64] * 3 + [c_void_p] + rules
    calls.attend_newest.argtypes = [c_int64] * 5 + [c_void_p] * 6 + rules
    calls.attend_queries.restype = calls.attend_newest.restype = None
    return calls


def supports(x: Tensor, *widths: int) -> bool:
    """Whether there are kernels for numbers like these and heads of these widths."""
    fits = all(width % WIDTH_STEP == 0 and 0 < width <= MOST_WIDTH for width in widths)
    return fits and x.dtype == torch.bfloat16 and x.device.type == "cpu" and _calls() is not None


@dataclass(frozen=True, eq=False)
class Rules:
    """A query sees its last `window` keys (None: all); scores become cap · tanh(score / cap); each head's `sinks_H`
    (fp32) is one more score, with a value of zero."""

    window: int | None = None
    cap: float | None = None
    sinks_H: Tensor | None = None

    def arguments(self) -> tuple[int | float | None, ...]:
        """What every kernel takes of them last. The sinks must outlive the call."""
        assert self.sinks_H is None or (self.sinks_H.is_contiguous() and self.sinks_H.dtype == torch.float32)
        return (self.window or 0, self.cap or 0.0, None if self.sinks_H is None else self.sinks_H.data_ptr())


PLAIN = Rules()


def attend_queries(q_BQHE: Tensor, k_BKGE: Tensor, v_BKGV: Tensor, first_B: Tensor, rules: Rules = PLAIN) -> Tensor:
    """softmax(q·k/√E)·v, (B, Q, H, V): query i of sequence b sees its keys 0 … first_B[b] + i, as many as there are."""
    n_sequences, n_queries, n_heads, width = q_BQHE.shape
    n_keys, n_groups, value_width = v_BKGV.shape[1:]
    out_BQHV = q_BQHE.new_empty(n_sequences, n_queries, n_heads, value_width)
    q_BQHE, k_BKGE, v_BKGV = (_heads_together(x) for x in (q_BQHE, k_BKGE, v_BKGV))
    strided = (number for x in (q_BQHE, k_BKGE, v_BKGV) for number in (x.data_ptr(), x.stride(0), x.stride(1)))
    sizes = (n_sequences, n_queries, n_heads, n_groups, n_keys, width, value_width)
    check_bf16(q_BQHE, k_BKGE, v_BKGV)
    assert first_B.is_contiguous()
    assert first_B.dtype == torch.int64
    _calls().attend_queries(*sizes, first_B.data_ptr(), *strided, out_BQHV.data_ptr(), *rules.arguments())
    return out_BQHV


def _heads_together(x_BNHE: Tensor) -> Tensor:
    """The same, with the heads of a row side by side; rows and sequences may lie anywhere."""
    return x_BNHE if x_BNHE.stride()[2:] == (x_BNHE.shape[3], 1) else x_BNHE.contiguous()


@dataclass(frozen=True)
class NewestKeys:
    """Which rows of a step are sequences' newest tokens, and where the keys of each lie; (B, K) is padded at will."""

    rows_B: Tensor
    n_keys_B: Tensor
    slots_BK: Tensor


def attend_newest(q_THE: Tensor, cache_S2GE: Tensor, keys: NewestKeys, out_THE: Tensor, rules: Rules = PLAIN) -> None:
    """softmax(q·k/√E)·v for the rows of newest tokens, written to the same rows of `out_THE`."""
    n_heads, d_head = q_THE.shape[1:]
    # The kernel takes no strides here, so that its inner loops stay simple.
    for x in (q_THE, cache_S2GE, keys.slots_BK, out_THE):
        assert x.is_contiguous()
    check_bf16(q_THE, cache_S2GE, out_THE)
    for index in (keys.rows_B, keys.n_keys_B, keys.slots_BK):
        assert index.dtype == torch.int64, index.dtype
    _calls().attend_newest(
        keys.slots_BK.shape[0],
        n_heads,
        cache_S2GE.shape[2],
        d_head,
        keys.slots_BK.shape[1],
        *(x.data_ptr() for x in (q_THE, cache_S2GE, keys.rows_B, keys.n_keys_B, keys.slots_BK, out_THE)),
        *rules.arguments(),
    )

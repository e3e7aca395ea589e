"""The kernels as functions of tensors, unseen by autograd. `supports` tells whether they are for these: bf16 on a CPU.

Legend: T rows, D width, F feed-forward width, B sequences, K keys, H query heads, G key/value heads, E head width,
S slots of the cache, R query rows of a group.
"""

from __future__ import annotations

import functools
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loreloop.kernels.build import library

_SIGNATURES = {
    "add_rms_norm": [c_int64] * 2 + [c_void_p] * 3 + [c_float] + [c_void_p] * 2,
    "gated_silu": [c_int64] * 2 + [c_void_p] * 2,
    "rms_norm_backward": [c_int64] * 2 + [c_void_p] * 3 + [c_float, c_void_p],
    "gated_silu_backward": [c_int64] * 2 + [c_void_p] * 3,
    "add_log_sums": [c_int64] * 6 + [c_void_p, c_float, c_void_p, c_int64, c_void_p],
    "score_gradients": [c_int64] * 6 + [c_void_p, c_float] + [c_void_p] * 2 + [c_int64, c_void_p] * 2,
    "turn_and_store": [c_int64] * 7 + [c_void_p] * 8,
    # A pointer must be declared as such: ctypes would otherwise pass a Python integer as 32 bits and cut the address
    # off.
}


def supports(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether there are kernels for steps where x lies, at this compute dtype."""
    return dtype == torch.bfloat16 and x.device.type == "cpu" and _calls() is not None


@functools.cache
def _calls() -> Any:
    """The library with its functions' arguments declared; None: there is none."""
    calls = library()
    for name, arguments in _SIGNATURES.items():
        # The loop runs over None as well, where no library could be built; every name is then simply missing.
        function = getattr(calls, name, None)
        if function is not None:
            function.argtypes, function.restype = arguments, None
    return calls


def add_rms_norm(x_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta (fp32), and that over its root mean square times `weight_D`, in bf16."""
    n_rows, width = x_TD.shape
    assert x_TD.is_contiguous()
    out_TD = torch.empty(x_TD.shape, dtype=torch.bfloat16)
    if delta_TD is None:
        # Without a delta the kernel writes no sum, and x itself is what the caller goes on with.
        sum_TD, delta, total = x_TD, None, None
    else:
        assert delta_TD.is_contiguous()
        sum_TD = torch.empty_like(x_TD)
        delta, total = delta_TD.data_ptr(), sum_TD.data_ptr()
    _calls().add_rms_norm(n_rows, width, x_TD.data_ptr(), delta, weight_D.data_ptr(), eps, total, out_TD.data_ptr())
    return sum_TD, out_TD


def gated_silu(gate_up_TF2: Tensor) -> Tensor:
    """silu(gate) · up, (T, F); gate is the first half of the columns."""
    assert gate_up_TF2.is_contiguous()
    n_rows, width = gate_up_TF2.shape[0], gate_up_TF2.shape[1] // 2
    out_TF = gate_up_TF2.new_empty(n_rows, width)
    _calls().gated_silu(n_rows, width, gate_up_TF2.data_ptr(), out_TF.data_ptr())
    return out_TF


def rms_norm_backward(x_TD: Tensor, dy_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The gradient (fp32) of what `add_rms_norm` took the norm of, from that of its bf16 result."""
    assert x_TD.is_contiguous()
    # Autograd may hand in an expanded or transposed gradient, and the kernel reads rows one behind the other.
    dy_TD = dy_TD.contiguous()
    dx_TD = torch.empty_like(x_TD)
    n_rows, width = x_TD.shape
    _calls().rms_norm_backward(n_rows, width, *(x.data_ptr() for x in (x_TD, dy_TD, weight_D)), eps, dx_TD.data_ptr())
    return dx_TD


def gated_silu_backward(gate_up_TF2: Tensor, dy_TF: Tensor) -> Tensor:
    """The gradient of `gated_silu`'s input from that of its result."""
    assert gate_up_TF2.is_contiguous()
    dy_TF = dy_TF.contiguous()
    grad_TF2 = torch.empty_like(gate_up_TF2)
    _calls().gated_silu_backward(*dy_TF.shape, *(x.data_ptr() for x in (gate_up_TF2, dy_TF, grad_TF2)))
    return grad_TF2


@dataclass(frozen=True)
class Window:
    """Which keys the rows of a group's scores see: row r is a query head of query t = first_query + r // n_repeats, and
    sees the keys from `from_T`[t] (None: from the first) up to t itself. Keys are numbered like queries."""

    first_query: int
    first_key: int
    n_repeats: int
    from_T: Tensor | None

    def arguments(self, scores_GRK: Tensor) -> tuple[int | None, ...]:
        """The sizes and bounds that every kernel over scores (G, R, K) takes first. The tensor behind the pointer must
        outlive the call."""
        from_T = None if self.from_T is None else self.from_T.data_ptr()
        return (*scores_GRK.shape, self.n_repeats, self.first_query, self.first_key, from_T)


def add_log_sums(score_GRK: Tensor, window: Window, scale: float, log_sum_GR: Tensor) -> None:
    """log_sum = log(e^log_sum + Σ e^(scale · score)) over the keys a row sees, in place, fp32."""
    assert score_GRK.is_contiguous()
    # The sums are a slice of a larger block's, so groups may lie apart, but the rows of a group may not.
    assert log_sum_GR.stride(1) == 1
    _calls().add_log_sums(
        *window.arguments(score_GRK), scale, score_GRK.data_ptr(), log_sum_GR.stride(0), log_sum_GR.data_ptr()
    )


def score_gradients(
    score_GRK: Tensor, dweight_GRK: Tensor, window: Window, scale: float, log_sum_GR: Tensor, along_GR: Tensor
) -> None:
    """In place, with weight = e^(scale · score − log_sum): `score_GRK` becomes the weights, `dweight_GRK` the scores'
    gradient scale · weight · (dweight − along); both are 0 where a row does not see a key."""
    assert score_GRK.is_contiguous()
    assert dweight_GRK.is_contiguous()
    assert log_sum_GR.stride(1) == along_GR.stride(1) == 1
    sums = (x for sums_GR in (log_sum_GR, along_GR) for x in (sums_GR.stride(0), sums_GR.data_ptr()))
    _calls().score_gradients(*window.arguments(score_GRK), scale, score_GRK.data_ptr(), dweight_GRK.data_ptr(), *sums)


@dataclass(frozen=True)
class Angles:
    """By how much a row's query and key are turned: cos, and sin with the sign of each half."""

    cos_TE: Tensor
    sin_TE: Tensor


def turn_and_store(
    q_THE: Tensor,
    k_TGE: Tensor,
    v_TGE: Tensor,
    angles: Angles,
    slot_T: Tensor,
    cache_S2GE: Tensor,
) -> Tensor:
    """Queries turned by their angles; keys, turned too, and values go to their slots of the cache."""
    n_rows, n_heads, d_head = q_THE.shape
    out_THE = torch.empty(q_THE.shape, dtype=q_THE.dtype)
    for x in (q_THE, k_TGE, v_TGE):
        # Rows may lie apart, since queries, keys and values are slices of one fused product; within a row they may not.
        assert x.stride()[1:] == (d_head, 1), x.stride()
    tensors = (q_THE, k_TGE, v_TGE, angles.cos_TE, angles.sin_TE, slot_T, out_THE, cache_S2GE)
    _calls().turn_and_store(
        n_rows,
        n_heads,
        k_TGE.shape[1],
        d_head,
        q_THE.stride(0),
        k_TGE.stride(0),
        v_TGE.stride(0),
        *(x.data_ptr() for x in tensors),
    )
    return out_THE

"""The gates of feed-forwards: what becomes of gate and up between the two products, and its gradient.

A gate keeps its input for the backward pass, which is kept anyway, and nothing else.

Legend: T rows, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from loreloop.model.pointwise import gated_silu, gated_silu_backward
from loreloop.model.spec import Activation

SHARPNESS, LIMIT = 1.702, 7.0  # of gpt-oss' gate, in all its published sizes


@dataclass(frozen=True)
class Gate:
    """`forward` takes gate and up side by side (T, 2F) to (T, F); `backward` takes the gradient of that back."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _gelu_tanh(gate_up_TF2: Tensor) -> Tensor:
    gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
    return F.gelu(gate_TF, approximate="tanh") * up_TF


def _clamped_silu(gate_up_TF2: Tensor) -> Tensor:
    """(up + 1) · gate · σ(1.702 gate), gates up to 7 and ups within ±7, as gpt-oss defines it."""
    gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
    gate_TF, up_TF = gate_TF.clamp(max=LIMIT), up_TF.clamp(-LIMIT, LIMIT)
    return (up_TF + 1) * (gate_TF * torch.sigmoid(gate_TF * SHARPNESS))


def _by_autograd(forward: Callable[[Tensor], Tensor]) -> Gate:
    """A gate whose gradient is taken from its own steps, made again."""

    def backward(gate_up_TF2: Tensor, dy_TF: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf_TF2 = gate_up_TF2.detach().requires_grad_()
            (grad_TF2,) = torch.autograd.grad(forward(leaf_TF2), leaf_TF2, dy_TF)
        return grad_TF2

    def apply(gate_up_TF2: Tensor) -> Tensor:
        # Autograd's own record of these steps would keep several tensors of their width.
        return _Gated.apply(gate_up_TF2, forward, backward) if torch.is_grad_enabled() else forward(gate_up_TF2)

    return Gate(apply, backward)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate_up_TF2: Tensor,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(gate_up_TF2)
        ctx.back = backward
        return forward(gate_up_TF2)

    @staticmethod
    def backward(ctx: Any, dy_TF: Tensor) -> tuple[Tensor, None, None]:
        (gate_up_TF2,) = ctx.saved_tensors
        return ctx.back(gate_up_TF2, dy_TF), None, None


GATES: Mapping[Activation, Gate] = {
    "silu": Gate(gated_silu, gated_silu_backward),
    "gelu_tanh": _by_autograd(_gelu_tanh),
    "clamped_silu": _by_autograd(_clamped_silu),
}

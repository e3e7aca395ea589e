"""What the ranks of a cut layer say to one another, as steps that autograd knows.

A cut part begins with `enter` and ends with `leave`. Source: the operators f and g of Shoeybi et al. 2019 (arXiv
1909.08053). Sums go over the wire in fp32, so that what is rounded is rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of all ranks' numbers, the same bits on each of them."""
    total = x.to(torch.float32, copy=True)
    dist.all_reduce(total, group=group)
    return total.to(x.dtype)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return summed(dy, ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return summed(x, group)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


def enter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The same numbers; on the way back, the sum of the gradients that the ranks' parts have."""
    return _Enter.apply(x, group)


def leave(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of the ranks' parts; on the way back each gets the whole gradient."""
    return _Leave.apply(x, group)

"""What the ranks of a cut layer say to one another, as steps that autograd knows, and how many bytes that takes.

A cut part begins with `enter` and ends with `leave`. Source: the operators f and g of Shoeybi et al. 2019 (arXiv
1909.08053). Where rows of the residual stream are cut as well, it begins with `enter_rows` and ends with `leave_rows`
(Korthikanti et al. 2022, arXiv 2205.05198). Sums go over the wire in fp32, so that what is rounded is rounded once.

Legend: T rows of all ranks, S rows of one, D width, R ranks.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

# What this process has handed to each kind of collective, in bytes of the tensor that it has afterwards (of a scatter:
# before). A ring sends (R - 1) / R of it from each rank, and twice that for a sum (`traffic.py`).
SENT: Counter[str] = Counter()


def summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of all ranks' numbers, the same bits on each of them."""
    total = x.to(torch.float32, copy=True)
    SENT["sum"] += total.nbytes
    if group.size() == 2:  # of two summands the order does not matter
        dist.all_reduce(total, group=group)
        return total.to(x.dtype)
    # As many bytes as a ring sends, but a ring begins to add up at another rank for each part of a tensor, and a row's
    # sum would depend on where in its batch it stands.
    n_ranks = group.size()
    padded = F.pad(total.flatten(), (0, -total.numel() % n_ranks))
    whole = torch.empty_like(padded)
    dist.all_gather(list(whole.chunk(n_ranks)), _sum_in_order(padded, group), group=group)
    return whole[: total.numel()].view(x.shape).to(x.dtype)


def _sum_in_order(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's part of the sum along the first dimension, added up from the first rank to the last."""
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x, group=group)
    first, *others = received.chunk(group.size())
    for other in others:
        first += other
    return first


def gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Every rank's numbers, (R, …); all have one shape."""
    found = x.new_empty(group.size(), *x.shape)
    SENT["gather"] += found.nbytes
    dist.all_gather(list(found.unbind()), x.contiguous(), group=group)
    return found


def scattered_sum(x_TD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's rows of the sum of all ranks' numbers, (S, D); T is a multiple of the ranks."""
    whole_TD = x_TD.to(torch.float32).contiguous()
    SENT["scatter"] += whole_TD.nbytes
    return _sum_in_order(whole_TD, group).to(x_TD.dtype)


def own_rows(x_TD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's of all rows, (S, D); the last ranks' end with zeros where the rows do not divide."""
    n_own = -(-len(x_TD) // group.size())
    padded_TD = F.pad(x_TD, (0, 0, 0, n_own * group.size() - len(x_TD)))
    return padded_TD[group.rank() * n_own : (group.rank() + 1) * n_own]


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


class _EnterRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, n_rows: int, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.n_padding = group, len(x_SD) * group.size() - n_rows
        return gathered(x_SD, group).flatten(0, 1)[:n_rows]

    @staticmethod
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor, None, None]:
        return scattered_sum(F.pad(dy_TD, (0, 0, 0, ctx.n_padding)), ctx.group), None, None


class _LeaveRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.n_rows = group, len(x_TD)
        return scattered_sum(F.pad(x_TD, (0, 0, 0, -len(x_TD) % group.size())), group)

    @staticmethod
    def backward(ctx: Any, dy_SD: Tensor) -> tuple[Tensor, None]:
        return gathered(dy_SD, ctx.group).flatten(0, 1)[: ctx.n_rows], None


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return gathered(x_SD, group).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor, None]:
        return own_rows(dy_TD, ctx.group), None


def enter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The same numbers; on the way back, the sum of the gradients that the ranks' parts have."""
    return _Enter.apply(x, group)


def leave(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of the ranks' parts; on the way back each gets the whole gradient."""
    return _Leave.apply(x, group)


def enter_rows(x_SD: Tensor, n_rows: int, group: dist.ProcessGroup) -> Tensor:
    """All ranks' rows, the first `n_rows` of them; on the way back, each rank's rows of the sum of the parts'
    gradients."""
    return _EnterRows.apply(x_SD, n_rows, group)


def leave_rows(x_TD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's rows of the sum of the ranks' parts; on the way back each gets the gradients of all rows."""
    return _LeaveRows.apply(x_TD, group)


def all_rows(x_SD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All ranks' rows, for what is the same on every rank: each has the whole gradient, and takes that of its rows."""
    return _AllRows.apply(x_SD, group)

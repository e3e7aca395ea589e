"""A routed feed-forward whose experts lie on several ranks. Every rank routes all rows, computes its own experts' part
of them, and the shared expert's of the rows whose home it is; the exchange adds up.

What goes in is marked once, before the router. On the way back, therefore, what a rank's experts say about their
inputs and about their weights (that is, through the router's scores) is one part of a gradient, which is summed with
those of others. Knows no adapters' numbers.

Legend: T rows (tokens), K experts a row, D model width, H rows whose home is this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from loreloop.model.decoder import Attend
from loreloop.model.expert_products import experts_sum
from loreloop.model.lora import Adapters, LoraBatch
from loreloop.model.rope import Rope
from loreloop.model.routed_feed_forward import RoutedFeedForward
from loreloop.parallel.exchange import Exchange, exchange_of


class _Way:
    """The way of a batch through the layer: `exchange` is known as soon as its rows are routed."""

    def __init__(self, pause: Callable[[], None]) -> None:
        self.pause = pause
        self.exchange: Exchange | None = None

    def known(self) -> Exchange:
        assert self.exchange is not None
        return self.exchange


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, way: _Way) -> Tensor:
        ctx.way = way
        return x_TD.view_as(x_TD)

    @staticmethod
    def backward(ctx: Any, dx_TD: Tensor) -> tuple[Tensor, None]:
        summed_TD = ctx.way.known().summed(dx_TD)
        ctx.way.pause()
        return summed_TD, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part_TD: Tensor, shared_HD: Tensor | None, exchange: Exchange) -> Tensor:
        ctx.own, ctx.shares = exchange.own, shared_HD is not None
        return exchange.summed(part_TD, shared_HD)

    @staticmethod
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor, Tensor | None, None]:
        # Every rank has the whole gradient already, as it has all that comes behind this layer.
        return dy_TD, dy_TD[ctx.own] if ctx.shares else None, None


@dataclass(frozen=True)
class SpreadExperts:
    """A layer's feed-forward with the experts of this rank, `share`, among the ranks of `group`."""

    share: RoutedFeedForward
    group: dist.ProcessGroup

    def __call__(self, x_TD: Tensor, rope: Rope, attend: Attend, lora: Adapters) -> Tensor:
        layer, way = self.share.layer, _Way(lora.pause)
        x_TD = _Enter.apply(x_TD, way)
        ids_TK, weight_TK = self.share.router(x_TD, lora)
        way.exchange = exchange = exchange_of(ids_TK, len(self.share.experts), self.group)
        # How many products there are depends on the rank. All ranks must pause equally often, for they do other work
        # together then; so there is no pause but at the exchanges.
        quiet = LoraBatch(lora.at(layer, "experts.gate_up"))
        part_TD = experts_sum(x_TD, weight_TK, ids_TK, self.share.products, quiet, layer)
        shared_HD, own = None, exchange.own
        if self.share.shared is not None and own.start < own.stop:
            shared_HD = self.share.shared(x_TD[own], rope, attend, lora.rows(own.start, own.stop))
        y_TD: Tensor = _Leave.apply(part_TD, shared_HD, exchange)
        lora.pause()
        return y_TD

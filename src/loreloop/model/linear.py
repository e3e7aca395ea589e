"""The frozen product at the heart of every layer, and how its rows are computed.

`BaseLinear` holds one weight (V or other outputs O by inputs I) and never forms its gradient. `Products` is the
strategy: fast, or tiled so that a row's result does not depend on its neighbours. Knows no adapters.

Legend: T rows (tokens), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Products(Protocol):
    """How a product over rows is carried out."""

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """x · weightᵀ + bias."""
        ...

    def matmul(self, x_TO: Tensor, weight_OI: Tensor) -> Tensor:
        """x · weight."""
        ...


class FastProducts:
    """One library call over all rows."""

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return F.linear(x_TI, weight_OI, bias_O)

    def matmul(self, x_TO: Tensor, weight_OI: Tensor) -> Tensor:
        return x_TO @ weight_OI


class TiledProducts:
    """Every library call sees exactly `row_tile` rows, zero-padded.

    Libraries choose their blocking by the shape of a call, and with it the order of additions. At one fixed shape a
    row's result depends on that row alone, whatever shares the batch and wherever the row stands in its tile. (In fp32
    a product with ten outputs or fewer may be an exception; log-probabilities come from none.)
    """

    def __init__(self, row_tile: int = 32) -> None:
        assert row_tile % 4 == 0, row_tile
        self.row_tile = row_tile

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return self._by_tiles(x_TI, lambda tile: F.linear(tile, weight_OI, bias_O))

    def matmul(self, x_TO: Tensor, weight_OI: Tensor) -> Tensor:
        return self._by_tiles(x_TO, lambda tile: tile @ weight_OI)

    def _by_tiles(self, x_TI: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        n_rows = x_TI.shape[0]
        padded = F.pad(x_TI, (0, 0, 0, -n_rows % self.row_tile)).contiguous()
        tiles = [product(tile) for tile in padded.split(self.row_tile)]
        return torch.cat(tiles)[:n_rows] if tiles else product(padded)


class BaseLinear:
    """A frozen linear map. `forward` gives (T, O), `input_grad` sends a gradient (T, O) back to (T, I)."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, products: Products) -> None:
        self.weight_OI = weight_OI
        self.bias_O = bias_O
        self.products = products

    @property
    def d_in(self) -> int:
        return self.weight_OI.shape[1]

    @property
    def d_out(self) -> int:
        return self.weight_OI.shape[0]

    def forward(self, x_TI: Tensor) -> Tensor:
        return self.products.linear(x_TI, self.weight_OI, self.bias_O)

    def input_grad(self, dy_TO: Tensor) -> Tensor:
        return self.products.matmul(dy_TO, self.weight_OI)

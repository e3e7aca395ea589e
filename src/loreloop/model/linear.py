"""The frozen product at the heart of every layer, and how its rows are computed.

`BaseLinear` holds one weight (V or other outputs O by inputs I) and never forms its gradient. `Products` is the
strategy: fast, or tiled so that a row's result does not depend on its neighbours. Knows no adapters.

Legend: T rows (tokens), I inputs, O outputs, R rank, N rows that are picked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from loreloop.kernels import bf16_products
from loreloop.model.packed_weights import PackedGroup, PackedWeight

MOST_SUMMED = 16_384  # with more a tile's weights leave the cache between rows, where the library's blocks stay
PACKED_ROWS = 512  # the batch that packed weights are laid out for; others gain as much


class Products(Protocol):
    """How a product over rows is carried out; with `exact_rows` a row's result does not depend on its neighbours."""

    exact_rows: bool

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """x · weightᵀ + bias."""
        ...

    def matmul(self, x_TO: Tensor, weight_OI: Tensor) -> Tensor:
        """x · weight."""
        ...

    def add_linear(self, y_TO: Tensor, x_TI: Tensor, weight_OI: Tensor) -> None:
        """y += x · weightᵀ, rounded once where the library can."""
        ...

    def frozen(self, weight_OI: Tensor, bias_O: Tensor | None) -> Callable[[Tensor], Tensor]:
        """`linear` for a weight that never changes, which may be laid out for it."""
        ...

    def low_rank(self, a_RI: Tensor, b_OR: Tensor) -> LowRank:
        """An adapter that never changes; rounds as `linear` and `add_linear` do."""
        ...


class LowRank(Protocol):
    """y + ((x · Aᵀ) ∘ mask) · Bᵀ, where the mask is of zeros and ones; None: of ones."""

    def add(self, y_TO: Tensor, x_TI: Tensor, mask_TR: Tensor | None) -> Tensor:
        """The sum; y may be lost."""
        ...

    def beside(self, base: BaseLinear, x_TI: Tensor, mask_TR: Tensor | None) -> Tensor:
        """The sum where y is the base's product of x."""
        ...


class FastProducts:
    """One call over all rows.

    On a CPU that multiplies bf16 these are our own (`kernels/bf16_products.c`), which add up in one order however many
    rows there are, and are faster than the library's. With `pack`, frozen bf16 weights are kept a second time in the
    order in which a CPU's product reads them, the library's too, where it supports that.
    """

    exact_rows = False

    def __init__(self, *, pack: bool = False) -> None:
        self.pack = pack

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """One product over all rows, (T, O), by our kernel where it supports the weight."""
        # The kernel adds the bias to its fp32 sums, before they are rounded, and so takes it in fp32.
        if bf16_products.supports(weight_OI):
            return bf16_products.product(x_TI, weight_OI, None if bias_O is None else bias_O.float())
        return F.linear(x_TI, weight_OI, bias_O)

    def matmul(self, x_TO: Tensor, weight_OI: Tensor) -> Tensor:
        """One product over all rows, (T, I), by our kernel where it supports the weight and is the faster one."""
        # Here the sum runs over the outputs, of which a head has a whole vocabulary.
        if bf16_products.supports(weight_OI) and len(weight_OI) <= MOST_SUMMED:
            return bf16_products.turned_product(x_TO, weight_OI)
        return x_TO @ weight_OI

    def add_linear(self, y_TO: Tensor, x_TI: Tensor, weight_OI: Tensor) -> None:
        """Adds in place, rounded once, with either kernel."""
        if bf16_products.supports(weight_OI):
            bf16_products.add_product(y_TO, x_TI, weight_OI)
        else:
            y_TO.addmm_(x_TI, weight_OI.T)

    def frozen(self, weight_OI: Tensor, bias_O: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The product with this weight, laid out a second time if `pack` is set and the processor profits from it."""
        if bf16_products.supports(weight_OI):
            # With or without the layout the kernel adds in one order, so `pack` is about time and memory and never
            # about numbers.
            return PanelLinear(bf16_products.laid_out(weight_OI) if self.pack else weight_OI, bias_O)
        if not (self.pack and _packable(weight_OI)):
            # What cannot be packed goes through the library's ordinary product, which takes any dtype and device.
            return lambda x_TI: F.linear(x_TI, weight_OI, bias_O)
        # These operations have no public name. They are what the library's own compiler emits for frozen weights.
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, PACKED_ROWS)
        return lambda x_TI: torch.ops.mkldnn._linear_pointwise(x_TI, packed, bias_O, "none", [], "")

    def low_rank(self, a_RI: Tensor, b_OR: Tensor) -> LowRank:
        """The adapter with both matrices laid out where our kernel supports them."""
        if bf16_products.supports(a_RI):
            return PanelLowRank(bf16_products.laid_out(a_RI), bf16_products.laid_out(b_OR))
        return PlainLowRank(self.frozen(a_RI, None), self._frozen_sum(b_OR))

    def _frozen_sum(self, weight_OI: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, y) → y + x · weightᵀ."""
        if not (self.pack and _packable(weight_OI)):
            return lambda x_TI, y_TO: torch.addmm(y_TO, x_TI, weight_OI.T)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, PACKED_ROWS)
        return lambda x_TI, y_TO: torch.ops.mkldnn._linear_pointwise.binary(x_TI, y_TO, packed, None, "add")


def _packable(weight_OI: Tensor) -> bool:
    on_cpu = weight_OI.device.type == "cpu" and weight_OI.dtype == torch.bfloat16
    # Asked at run time: a build of the library, or a processor, without bf16 products would fail only at the first
    # call.
    return on_cpu and torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class TiledProducts:
    """Every library call sees exactly `row_tile` rows, zero-padded.

    Libraries choose their blocking by the shape of a call, and with it the order of additions. At one fixed shape a
    row's result depends on that row alone, whatever shares the batch and wherever the row stands in its tile. (In fp32
    a product with ten outputs or fewer may be an exception; log-probabilities come from none.)
    """

    exact_rows = True

    def __init__(self, row_tile: int = 32) -> None:
        # Libraries work through rows in small blocks; a tile that ends within one would send its last rows down another
        # path.
        assert row_tile % 4 == 0, row_tile
        self.row_tile = row_tile

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """One call for each tile of rows, (T, O)."""
        return self._by_tiles(x_TI, lambda tile: F.linear(tile, weight_OI, bias_O))

    def matmul(self, x_TO: Tensor, weight_OI: Tensor) -> Tensor:
        """One call for each tile of rows, (T, I)."""
        return self._by_tiles(x_TO, lambda tile: tile @ weight_OI)

    def frozen(self, weight_OI: Tensor, bias_O: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The same tiled product; nothing is laid out, since that could change the order of additions."""
        return lambda x_TI: self.linear(x_TI, weight_OI, bias_O)

    def add_linear(self, y_TO: Tensor, x_TI: Tensor, weight_OI: Tensor) -> None:
        """Adds in place; the product is rounded before it is added, as it is in every other batch."""
        y_TO += self.linear(x_TI, weight_OI)

    def low_rank(self, a_RI: Tensor, b_OR: Tensor) -> LowRank:
        """The adapter by two tiled products."""
        return PlainLowRank(self.frozen(a_RI, None), lambda x_TI, y_TO: y_TO + self.linear(x_TI, b_OR))

    def _by_tiles(self, x_TI: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        n_rows = x_TI.shape[0]
        # Contiguous, since a library may choose another path, with another order of additions, for strided rows.
        padded = F.pad(x_TI, (0, 0, 0, -n_rows % self.row_tile)).contiguous()
        tiles = [product(tile) for tile in padded.split(self.row_tile)]
        # Without rows there is no tile to tell the width of the result, so the empty product is asked for it.
        return torch.cat(tiles)[:n_rows] if tiles else product(padded)


@dataclass(frozen=True)
class PlainLowRank:
    """By two products: x · Aᵀ, and (h, y) → y + h · Bᵀ."""

    down: Callable[[Tensor], Tensor]
    up: Callable[[Tensor, Tensor], Tensor]

    def add(self, y_TO: Tensor, x_TI: Tensor, mask_TR: Tensor | None) -> Tensor:
        """The sum as a new tensor, or in y where `up` works in place."""
        # The mask goes onto the R numbers in between, where it is cheap: what is zero there adds nothing to y.
        h_TR = self.down(x_TI)
        return self.up(h_TR if mask_TR is None else h_TR.mul_(mask_TR), y_TO)

    def beside(self, base: BaseLinear, x_TI: Tensor, mask_TR: Tensor | None) -> Tensor:
        """The base's product first, then the adapter's upon it."""
        return self.add(base.forward(x_TI), x_TI, mask_TR)


class PanelLinear:
    """x · weightᵀ + bias by our own kernel, with its weight laid out or not."""

    def __init__(self, weight: bf16_products.Panels | Tensor, bias_O: Tensor | None) -> None:
        # Converted once here instead of at every product.
        self.weight, self.bias_O = weight, None if bias_O is None else bias_O.float()

    def __call__(self, x_TI: Tensor) -> Tensor:
        return bf16_products.product(x_TI, self.weight, self.bias_O)


@dataclass(frozen=True)
class PanelLowRank:
    """By our own kernel, in one call with the base's product where both are laid out."""

    a: bf16_products.Panels
    b: bf16_products.Panels

    def add(self, y_TO: Tensor, x_TI: Tensor, mask_TR: Tensor | None) -> Tensor:
        """The sum, in y itself."""
        h_TR = bf16_products.product(x_TI, self.a)
        bf16_products.add_product(y_TO, h_TR if mask_TR is None else h_TR.mul_(mask_TR), self.b)
        return y_TO

    def beside(self, base: BaseLinear, x_TI: Tensor, mask_TR: Tensor | None) -> Tensor:
        """Both products in one call of the kernel where the base's weight is laid out too."""
        # Only a laid out base can share the call: the kernel then reads x once for both products while it is in the
        # cache.
        of_base = base.forward
        if isinstance(of_base, PanelLinear) and isinstance(of_base.weight, bf16_products.Panels):
            return bf16_products.site(x_TI, of_base.weight, of_base.bias_O, self.a, self.b, mask_TR)
        return self.add(of_base(x_TI), x_TI, mask_TR)


def rows_of(weight: Tensor | PackedWeight, index_N: Tensor) -> Tensor:
    """(N, I)"""
    return weight.rows(index_N) if isinstance(weight, PackedWeight) else F.embedding(index_N, weight)


class BaseLinear:
    """A frozen linear map. `forward` gives (T, O), `input_grad` sends a gradient (T, O) back to (T, I)."""

    def __init__(self, weight: Tensor | PackedWeight, bias_O: Tensor | None, products: Products) -> None:
        self.weight = weight
        self.bias_O = bias_O
        self.products = products
        # A single weight in sheets is a group of one, so that a GPU has one kernel for plain and for routed products.
        self._alone = PackedGroup.of([weight], exact=products.exact_rows)
        # Chosen once. Asking at every product what kind of weight this is would cost more than a small product itself.
        self.forward: Callable[[Tensor], Tensor]  # (T, I) → (T, O)
        if isinstance(weight, PackedWeight):
            self.forward = weight.product(bias_O, products.linear, self._alone)
        else:
            self.forward = products.frozen(weight, bias_O)

    @property
    def d_in(self) -> int:
        """The number of inputs I."""
        return self.weight.shape[1]

    @property
    def d_out(self) -> int:
        """The number of outputs O."""
        return self.weight.shape[0]

    @property
    def weight_OI(self) -> Tensor:
        """The weight; a packed one is unpacked for the caller."""
        return self.weight.dense() if isinstance(self.weight, PackedWeight) else self.weight

    def rows(self, index_N: Tensor) -> Tensor:
        """The weights of some outputs, (N, I)."""
        return rows_of(self.weight, index_N)

    def input_grad(self, dy_TO: Tensor) -> Tensor:
        """dy · W, (T, I); the weight's own gradient is never formed, since the base is frozen."""
        if self._alone is not None and self._alone.serves(dy_TO):
            return self._alone.input_grad(dy_TO)
        # A packed weight without a kernel is unpacked for this one product, and the copy is dropped again.
        return self.products.matmul(dy_TO, self.weight_OI.to(dy_TO.dtype))

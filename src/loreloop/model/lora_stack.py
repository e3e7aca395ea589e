"""The adapters of a sampling step side by side: one product down and one product up a site, whoever asked for a row.

The A matrices of several adapters are laid one under the other, their B matrices on the diagonal of one wide matrix; a
mask of zeros and ones keeps each row to its own adapter's columns. Weights are laid out once for a set of adapters and
serve every step that needs no other. Experts' adapters go one by one (`expert_products.py`). Never trains.

Legend: T rows, I inputs, O outputs, P parts of a site, R summed ranks of all parts and adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from loreloop.model.expert_routes import Routes
from loreloop.model.linear import BaseLinear, LowRank, Products
from loreloop.model.lora import AdapterView, LoraGroup, groups_within

MERGED_ROWS = 64  # beyond it, multiplying every row with every adapter costs more than a product for each
MERGED_RANKS = 256
KEPT_RANKS = 512
LARGEST_WEIGHT = 1e6  # 0 · ∞ is no number: an adapter with larger weights is kept from the rows of others


@dataclass(frozen=True)
class _Site:
    """The adapters' product, with 32/rank in B; `widths` are each adapter's columns of x · Aᵀ."""

    product: LowRank
    widths: tuple[int, ...]


class Stack:
    """The weights of a few adapters, by site, laid out when first used."""

    def __init__(self, adapters: Sequence[AdapterView], products: Products) -> None:
        self.adapters, self.products = tuple(adapters), products
        self.rank = sum(adapter.layout.rank for adapter in adapters)
        self._sites: dict[tuple[int, str], _Site | None] = {}

    def site(self, layer: int, name: str) -> _Site | None:
        """None: no adapter has it."""
        key = (layer, name)
        if key not in self._sites:
            self._sites[key] = self._laid_out(layer, name)
        return self._sites[key]

    def _laid_out(self, layer: int, name: str) -> _Site | None:
        key = (layer, name)
        # Adapters of one step may train different parts of the network; those without this site get no columns at all.
        having = [adapter for adapter in self.adapters if adapter.layout.has(*key)]
        if not having:
            return None
        parts = having[0].layout.places[key].shape.parts
        a_RI = torch.cat([_even_ranks(adapter.a(*key), len(parts)) for adapter in having])
        # The B matrices stand on the diagonal, parts by adapters; the zeros beside them keep each part's ranks to its
        # own outputs.
        b_OR = a_RI.new_zeros(sum(part.d_out for part in parts), a_RI.shape[0])
        column = 0
        for adapter in having:
            for part, b_part in zip(parts, adapter.b(*key), strict=True):
                rank = b_part.shape[1]
                # The scale goes into B once, since the stack is used for many steps.
                torch.mul(
                    b_part, adapter.layout.scale, out=b_OR[part.start : part.start + part.d_out, column : column + rank]
                )
                column += _even(rank)
        # Zero columns for an adapter without the site, so that its place in the mask still has a number.
        widths = tuple(_even(a.layout.rank) * len(parts) if a.layout.has(*key) else 0 for a in self.adapters)
        return _Site(self.products.low_rank(a_RI, b_OR), widths)


def _even(rank: int) -> int:
    return rank + rank % 2


def _even_ranks(a_RI: Tensor, n_parts: int) -> Tensor:
    """A with a row of zeros behind each part's odd rank."""
    # Processors add the products of a pair of ranks at once. A part that began within a pair would be added up in other
    # pairs than in training.
    a_PRI = a_RI.unflatten(0, (n_parts, -1))
    return F.pad(a_PRI, (0, 0, 0, a_PRI.shape[1] % 2)).flatten(0, 1)


class StackCache:
    """The stacks used last, at most `KEPT_RANKS` ranks of them and always one."""

    def __init__(self, products: Products) -> None:
        self.products = products
        self.stacks: list[Stack] = []  # the last one used stands last
        # Weak, so that the answer for an adapter does not keep the adapter itself in memory.
        self._moderate = WeakKeyDictionary[AdapterView, bool]()

    def moderate(self, adapter: AdapterView) -> bool:
        """Whether its columns, multiplied by zero, are zero for everyone."""
        # A pass over the whole adapter, but one for its lifetime. NaN fails the comparison and counts as immoderate.
        if adapter not in self._moderate:
            self._moderate[adapter] = bool((adapter.flat.abs() <= LARGEST_WEIGHT).all())
        return self._moderate[adapter]

    def get(self, adapters: Sequence[AdapterView]) -> Stack:
        """One that holds these adapters, and perhaps a few that were with them a moment ago."""
        wanted = {id(adapter) for adapter in adapters}
        # A stack with more adapters than needed still serves, as long as the idle columns cost less than laying out a
        # new one.
        most = 3 * sum(adapter.layout.rank for adapter in adapters) // 2
        found = next((s for s in self.stacks if s.rank <= most and wanted <= set(map(id, s.adapters))), None)
        if found:
            self.stacks.remove(found)
        self.stacks.append(found or Stack(adapters, self.products))
        # The newest always stays, however large it is, or it would be laid out again for every step.
        while len(self.stacks) > 1 and sum(stack.rank for stack in self.stacks) > KEPT_RANKS:
            self.stacks.pop(0)
        return self.stacks[-1]


class _Section:
    """Rows start…stop and the stack that serves them."""

    def __init__(self, groups: Sequence[LoraGroup], stack: Stack) -> None:
        self.start, self.stop, self.stack = groups[0].start, groups[-1].stop, stack
        self.n_rows = self.stop - self.start
        self._groups = groups
        self._masks: dict[tuple[int, ...], Tensor] = {}
        # One adapter for all rows of the section needs no mask, which is the common case of a single user.
        self._masked = len(stack.adapters) > 1 or len(groups) > 1

    def add(self, y_TO: Tensor, x_TI: Tensor, layer: int, name: str) -> Tensor:
        """What the base gave for the section's rows, with the adapters' products."""
        site = self.stack.site(layer, name)
        return y_TO if site is None else site.product.add(y_TO, x_TI, self._mask(site.widths, x_TI))

    def linear(self, x_TI: Tensor, base: BaseLinear, layer: int, name: str) -> Tensor:
        """The base's product of the section's rows, with the adapters'."""
        site = self.stack.site(layer, name)
        if site is None:
            return base.forward(x_TI)
        return site.product.beside(base, x_TI, self._mask(site.widths, x_TI))

    def _mask(self, widths: tuple[int, ...], like: Tensor) -> Tensor | None:
        """(T, R), ones where a row's own adapter is; None: everywhere."""
        if not self._masked:
            return None
        # Sites of equal widths share a mask, so a step makes two or three of them and not one a layer.
        if widths not in self._masks:
            mask_TR = like.new_zeros(len(like), sum(widths))
            # By identity: views are compared and hashed as objects, and two revisions with equal numbers are two
            # adapters.
            number = {id(adapter): i for i, adapter in enumerate(self.stack.adapters)}
            for group in self._groups:
                i = number[id(group.weights)]
                first = sum(widths[:i])
                mask_TR[group.start - self.start : group.stop - self.start, first : first + widths[i]] = 1
            self._masks[widths] = mask_TR
        return self._masks[widths]


class StackedLora:
    """`Adapters` of one sampling step: groups in ascending order, neighbours of few rows in one section."""

    def __init__(
        self, groups: Sequence[LoraGroup], n_rows: int, stacks: StackCache, routes: Routes | None = None
    ) -> None:
        self.groups, self.n_rows, self.routes, self._stacks = groups, n_rows, routes, stacks
        self._within: dict[tuple[int, int], StackedLora] = {}
        self.sections = [
            # A section asks for each of its adapters once, though several groups may use the same one.
            _Section(section, stacks.get(list({id(g.weights): g.weights for g in section}.values())))
            for section in _sections(groups, stacks.moderate)
        ]

    def pause(self) -> None:
        """A step is short."""

    def at(self, layer: int, site: str) -> list[LoraGroup]:
        """The groups whose adapter changes this site, for products that go adapter by adapter."""
        return [group for group in self.groups if group.weights.layout.has(layer, site)]

    def rows(self, start: int, stop: int) -> StackedLora:
        """See `Adapters.rows`."""
        # Every layer asks for the same ones, and masks are made once.
        if (start, stop) not in self._within:
            within = groups_within(self.groups, start, stop)
            self._within[start, stop] = StackedLora(within, stop - start, self._stacks)
        return self._within[start, stop]

    def linear(self, x_TI: Tensor, base: BaseLinear, layer: int, site: str) -> Tensor:
        """The base's product with every row's own adapter upon it."""
        # When one section covers all rows, base and adapters can go through the kernel's single call.
        if len(self.sections) == 1 and self.sections[0].n_rows == self.n_rows:
            return self.sections[0].linear(x_TI, base, layer, site)
        y_TO = base.forward(x_TI)
        for section in self.sections:
            rows = slice(section.start, section.stop)
            y_TO[rows] = section.add(y_TO[rows], x_TI[rows], layer, site)
        return y_TO


def _sections(groups: Sequence[LoraGroup], moderate: Callable[[AdapterView], bool]) -> list[list[LoraGroup]]:
    sections: list[list[LoraGroup]] = []
    rank = 0

    def joins(group: LoraGroup) -> bool:
        first, own_rank = sections[-1][0], group.weights.layout.rank
        # Every row of a section is multiplied with all of its adapters' columns, so sections must stay small both ways.
        few = rank + own_rank <= MERGED_RANKS and group.stop - first.start <= MERGED_ROWS
        return few and moderate(first.weights) and moderate(group.weights)

    for group in groups:
        own_rank = group.weights.layout.rank
        if sections and joins(group):
            sections[-1].append(group)
            rank += own_rank
        else:
            sections.append([group])
            rank = own_rank
    return sections

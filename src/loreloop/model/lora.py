"""LoRA over a decoder: where adapters sit, how their numbers lie in one flat vector, and their product.

ΔW = (32 / rank) · B · A with A uniform in ±1/√d_in and B zero. A site is one fused product of a layer; its parts
share the input, so their A matrices are stacked and multiplied once. An adapter is one vector; everything else here
is a view of it. Knows no optimizer and no users.

Legend: T tokens, I inputs, O outputs of a part, R rank, P parts of a site.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from loreloop.model.expert_routes import Routes
from loreloop.model.linear import BaseLinear, Products
from loreloop.model.lora_region import Matrix
from loreloop.model.spec import DecoderSpec, MoeSpec
from loreloop.protocol.training import ExpertForm, LoraSpec

ALPHA = 32.0
UNEMBED = "unembed"
SiteKey = tuple[int, str]  # a layer, and the name of a site in it


@dataclass(frozen=True)
class Part:
    """One named projection inside a site: `start` is where its outputs begin in the site's product."""

    name: str
    start: int
    d_out: int


@dataclass(frozen=True)
class SiteShape:
    """One fused product that carries an adapter. Over routed experts it has `n_a` stacks of A and `n_b` of each B: one
    for every expert, or one for all of them; 0 where there are no experts."""

    d_in: int
    parts: tuple[Part, ...]
    n_a: int = 0
    n_b: int = 0

    def size(self, rank: int) -> int:
        """How many numbers an adapter of this rank has here, all parts and experts together."""
        n_a, n_b = max(self.n_a, 1), max(self.n_b, 1)
        return rank * sum(n_a * self.d_in + n_b * part.d_out for part in self.parts)

    @property
    def d_out(self) -> int:
        """The width of the site's fused product."""
        return sum(part.d_out for part in self.parts)


def site_shapes(spec: DecoderSpec, lora: LoraSpec, layer: int) -> dict[str, SiteShape]:
    """The sites of a layer that `lora` trains, in the order of their numbers."""
    shapes = attention_sites(spec) if lora.train_attn else {}
    if lora.train_mlp and spec.moe and spec.routes(layer):
        # The order here is the order of numbers in the flat vector, which checkpoints hold: it must never change.
        shapes |= expert_sites(spec, spec.moe, lora.experts)
        if spec.moe.d_shared:
            shapes |= feed_forward_sites(spec, spec.moe.d_shared, "shared.", "mlp.shared_experts")
    elif lora.train_mlp:
        shapes |= feed_forward_sites(spec, spec.d_ff)
    return shapes


def attention_sites(spec: DecoderSpec) -> dict[str, SiteShape]:
    """The sites of an attention layer: q, k and v fused (or queries and latents), and the output product."""
    if spec.latent:
        latent = spec.latent
        # The first product of queries and that of latents have the same input and are fused; the second ones are not
        # trained.
        query = ("q_proj", spec.n_heads * spec.d_head) if latent.q_rank is None else ("q_a_proj", latent.q_rank)
        inner = _site(spec.d_model, "self_attn", (query, ("kv_a_proj_with_mqa", latent.kv_rank + latent.d_rope)))
        sites = {"q_kv_a": inner}
    else:
        parts: tuple[tuple[str, int], ...] = (("q_proj", spec.d_q), ("k_proj", spec.d_kv), ("v_proj", spec.d_kv))
        if spec.fused_projections:
            # Published as one matrix, it has one adapter, as peft gives it.
            parts = (("qkv_proj", spec.d_q + 2 * spec.d_kv),)
        sites = {"qkv": _site(spec.d_model, "self_attn", parts)}
    return sites | {"o": _site(spec.d_attended, "self_attn", (("o_proj", spec.d_model),))}


def feed_forward_sites(spec: DecoderSpec, width: int, site: str = "", module: str = "mlp") -> dict[str, SiteShape]:
    """The two sites of a gated feed-forward `width` wide. `site` begins their names, `module` their parts'."""
    both = (("gate_up_proj", 2 * width),) if spec.fused_projections else (("gate_proj", width), ("up_proj", width))
    return {
        f"{site}gate_up": _site(spec.d_model, module, both),
        f"{site}down": _site(width, module, (("down_proj", spec.d_model),)),
    }


def expert_sites(spec: DecoderSpec, moe: MoeSpec, form: ExpertForm) -> dict[str, SiteShape]:
    """The two sites over routed experts. In the shared-outer form the matrices on the model's side are one for all."""
    # The names w1, w2 and w3 are those under which the hosted service publishes experts' matrices.
    outer = 1 if form == "shared_outer" else len(moe.here)
    gate_up = _site(spec.d_model, "mlp.experts", (("w1", moe.d_expert), ("w3", moe.d_expert)))
    down = _site(moe.d_expert, "mlp.experts", (("w2", spec.d_model),))
    return {
        "experts.gate_up": replace(gate_up, n_a=outer, n_b=len(moe.here)),
        "experts.down": replace(down, n_a=len(moe.here), n_b=outer),
    }


def _site(d_in: int, module: str, widths: Sequence[tuple[str, int]]) -> SiteShape:
    """Projections of `module` side by side."""
    starts = accumulate((width for _, width in widths), initial=0)
    # `starts` has one number more than there are widths, the total; it is left over.
    parts = (Part(f"{module}.{name}", start, width) for (name, width), start in zip(widths, starts, strict=False))
    return SiteShape(d_in, tuple(parts))


@dataclass(frozen=True)
class _Place:
    """Where a site's numbers lie: A (P·R, I) first, then one B (O, R) a part; over experts, several of each."""

    shape: SiteShape
    start: int


class LoraLayout:
    """Maps (layer, site) to ranges of a flat vector of `size` numbers. The unembedding's layer is `n_layers`."""

    def __init__(self, spec: DecoderSpec, lora: LoraSpec) -> None:
        self.spec, self.lora, self.rank = spec, lora, lora.rank
        self.scale = ALPHA / lora.rank
        self.places: dict[tuple[int, str], _Place] = {}
        self.size = 0
        for layer in spec.layers:
            for site, shape in site_shapes(spec, lora, layer).items():
                self._add(layer, site, shape)
        if lora.train_unembed and spec.has_head:
            # The unembedding follows the last layer, so that it may go through the same calls as any other site.
            self._add(spec.n_layers, UNEMBED, SiteShape(spec.d_model, (Part(UNEMBED, 0, spec.vocab_size),)))

    def _add(self, layer: int, site: str, shape: SiteShape) -> None:
        self.places[layer, site] = _Place(shape, self.size)
        self.size += shape.size(self.rank)

    def has(self, layer: int, site: str) -> bool:
        """Whether an adapter of this layout changes the site of this layer."""
        return (layer, site) in self.places

    def part(self, keys: Iterable[SiteKey]) -> LoraLayout:
        """That of some sites alone, as far as they are here, one behind the other."""
        part = copy.copy(self)
        part.places, part.size = {}, 0
        for key in keys:
            if key in self.places:
                part._add(*key, self.places[key].shape)
        return part

    def range_of(self, part: LoraLayout) -> slice:
        """Where the numbers of a part lie whose sites are neighbours here."""
        start = min((self.places[key].start for key in part.places), default=0)
        return slice(start, start + part.size)

    def matrices(self, layer: int, site: str) -> Iterator[Matrix]:
        """Those of a site, in the order in which their numbers lie."""
        yield Matrix(layer, site, "a")
        yield from (Matrix(layer, site, "b", part) for part in range(len(self.places[layer, site].shape.parts)))


class AdapterView:
    """The matrices of one adapter as views of its flat vector."""

    def __init__(self, layout: LoraLayout, flat: Tensor) -> None:
        assert flat.shape == (layout.size,), (flat.shape, layout.size)
        self.layout, self.flat = layout, flat
        self._a: dict[tuple[int, str], Tensor] = {}
        self._b: dict[tuple[int, str], tuple[Tensor, ...]] = {}
        for key, place in layout.places.items():
            self._a[key], self._b[key] = self._views(place)

    def _views(self, place: _Place) -> tuple[Tensor, tuple[Tensor, ...]]:
        rank, shape, offset = self.layout.rank, place.shape, place.start
        # A comes first and whole, because the parts share their input and one product with stacked A serves all of
        # them.
        a_PRI, offset = self._view(offset, shape.n_a, len(shape.parts) * rank, shape.d_in)
        b_parts = []
        for part in shape.parts:
            b_OR, offset = self._view(offset, shape.n_b, part.d_out, rank)
            b_parts.append(b_OR)
        return a_PRI, tuple(b_parts)

    def _view(self, offset: int, n_stacked: int, n_rows: int, n_columns: int) -> tuple[Tensor, int]:
        size = max(n_stacked, 1) * n_rows * n_columns
        shape = (n_stacked, n_rows, n_columns) if n_stacked else (n_rows, n_columns)
        return self.flat[offset : offset + size].view(shape), offset + size

    def a(self, layer: int, site: str) -> Tensor:
        """The stacked A matrices of a site, (P·R, I); over experts (n_a, P·R, I)."""
        return self._a[layer, site]

    def b(self, layer: int, site: str) -> tuple[Tensor, ...]:
        """One B matrix (O, R) a part; over experts (n_b, O, R)."""
        return self._b[layer, site]

    def at(self, matrix: Matrix) -> Tensor:
        """One of them."""
        key = (matrix.layer, matrix.site)
        return self._a[key] if matrix.factor == "a" else self._b[key][matrix.part]

    def part(self, layout: LoraLayout) -> AdapterView:
        """Some neighbouring sites of it (`LoraLayout.part`); a view."""
        return AdapterView(layout, self.flat[self.layout.range_of(layout)])


def outline(layout: LoraLayout, dtype: torch.dtype) -> AdapterView:
    """An adapter that has shapes and no numbers."""
    return AdapterView(layout, torch.empty(layout.size, dtype=dtype, device="meta"))


def drawn_a(layout: LoraLayout, seed: int) -> Iterator[tuple[Matrix, Tensor]]:
    """The A of each site of a fresh adapter, one after another: fp32, uniform in ±1/√d_in from `seed`."""
    # Drawn on the CPU, in fp32: a seed then gives the same adapter on every device and in every dtype.
    generator = torch.Generator().manual_seed(seed)
    for key, place in layout.places.items():
        shape = place.shape
        # The bound is that of PyTorch's linear layers, which peft initialises A with as well.
        bound = 1.0 / math.sqrt(shape.d_in)
        rows = len(shape.parts) * layout.rank
        a_PRI = torch.empty((shape.n_a, rows, shape.d_in) if shape.n_a else (rows, shape.d_in))
        yield Matrix(*key, "a"), a_PRI.uniform_(-bound, bound, generator=generator)


def init_flat(layout: LoraLayout, seed: int) -> Tensor:
    """A fresh adapter, fp32: A as it is drawn, B zero, so that it changes nothing yet."""
    view = AdapterView(layout, torch.zeros(layout.size))
    for matrix, a_PRI in drawn_a(layout, seed):
        view.at(matrix).copy_(a_PRI)
    return view.flat


@dataclass(frozen=True)
class LoraGroup:
    """Tokens start…stop of a batch use `weights`; `grad` (fp32) collects their gradient when they train."""

    start: int
    stop: int
    weights: AdapterView
    grad: AdapterView | None = None


class Adapters(Protocol):
    """What a batch's rows add to the base's products, and where they are routed (None: nobody asks)."""

    @property
    def routes(self) -> Routes | None:
        """Where this batch's routed layers write down their choices, or find given ones."""
        ...

    @property
    def pause(self) -> Callable[[], None]:
        """Called between products, so that other work can slip in. Must not touch this batch."""
        ...

    def linear(self, x_TI: Tensor, base: BaseLinear, layer: int, site: str) -> Tensor:
        """x · Wᵀ + b, plus each row's (32/rank) · (x · Aᵀ) · Bᵀ."""
        ...

    def at(self, layer: int, site: str) -> list[LoraGroup]:
        """The groups that have an adapter there."""
        ...

    def rows(self, start: int, stop: int) -> Adapters:
        """Those of some rows alone, counted from `start`; without routes and pauses."""
        ...


@dataclass(frozen=True)
class LoraBatch:
    """The adapters of a batch, each over one run of tokens; tokens in no group use the bare base.

    The backward pass adds the groups' gradients to their `grad` in fp32 and sends on the gradient of x alone. `pause`
    is called after each product, either way.
    """

    groups: Sequence[LoraGroup]
    pause: Callable[[], None] = lambda: None
    routes: Routes | None = None

    def linear(self, x_TI: Tensor, base: BaseLinear, layer: int, site: str) -> Tensor:
        """x · Wᵀ + b plus each group's product at its rows; with gradients enabled, one autograd step."""
        # Autograd's wrapper takes as long as a small product, and sampling needs none.
        if torch.is_grad_enabled():
            y_TO = _LoraLinear.apply(x_TI, base, self, layer, site)
        else:
            y_TO = _forward(x_TI, base, self.at(layer, site), layer, site)[0]
        self.pause()
        return y_TO

    def at(self, layer: int, site: str) -> list[LoraGroup]:
        """The groups whose adapter changes this site."""
        return [group for group in self.groups if group.weights.layout.has(layer, site)]

    def rows(self, start: int, stop: int) -> LoraBatch:
        """See `Adapters.rows`."""
        return LoraBatch(groups_within(self.groups, start, stop))


def groups_within(groups: Sequence[LoraGroup], start: int, stop: int) -> list[LoraGroup]:
    """What of each group lies within these rows, counted from `start`."""
    clipped = [replace(g, start=max(g.start, start) - start, stop=min(g.stop, stop) - start) for g in groups]
    return [group for group in clipped if group.start < group.stop]


NO_ADAPTERS = LoraBatch(())


def _forward(
    x_TI: Tensor, base: BaseLinear, groups: Sequence[LoraGroup], layer: int, site: str
) -> tuple[Tensor, list[Tensor]]:
    """The product, and each group's x · Aᵀ."""
    # The groups add to this product in place, which is why `_forward` must own it.
    y_TO = base.forward(x_TI)
    return y_TO, [_add_product(x_TI, y_TO, base, group, layer, site) for group in groups]


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, base: BaseLinear, lora: LoraBatch, layer: int, site: str) -> Tensor:
        groups = lora.at(layer, site)
        y_TO, inner = _forward(x_TI, base, groups, layer, site)
        ctx.base, ctx.groups, ctx.layer, ctx.site, ctx.pause = base, groups, layer, site, lora.pause
        # x · Aᵀ is kept, as it is narrow. The base's product is not needed again, and its weight is not copied.
        ctx.save_for_backward(x_TI, *inner)
        return y_TO

    @staticmethod
    def backward(ctx: Any, dy_TO: Tensor) -> tuple[Tensor, None, None, None, None]:
        x_TI, *inner = ctx.saved_tensors
        dx_TI = ctx.base.input_grad(dy_TO)
        for group, h_TR in zip(ctx.groups, inner, strict=True):
            rows = slice(group.start, group.stop)
            products = ctx.base.products
            matrices = _SiteGroup(group, ctx.layer, ctx.site)
            # Groups are disjoint runs of rows, so each adds to rows of its own; rows without an adapter keep the base's
            # part alone.
            dx_TI[rows] += _send_back(x_TI[rows], h_TR, dy_TO[rows], products, matrices)
        ctx.pause()
        return dx_TI, None, None, None, None


def _add_product(x_TI: Tensor, y_TO: Tensor, base: BaseLinear, group: LoraGroup, layer: int, site: str) -> Tensor:
    """Adds one group's product to its rows of y; gives x · Aᵀ, (rows, P·R), that the backward needs."""
    rows = slice(group.start, group.stop)
    layout = group.weights.layout
    h_TR = base.products.linear(x_TI[rows], group.weights.a(layer, site))
    parts = layout.places[layer, site].shape.parts
    for index, (part, b_OR) in enumerate(zip(parts, group.weights.b(layer, site), strict=True)):
        # Columns lie as the parts' A matrices are stacked.
        h_part = h_TR[:, index * layout.rank : (index + 1) * layout.rank]
        # The scale goes into B, as where sampling stacks adapters: both then round alike at ranks that are no powers of
        # two. At rank 32 it is one, and the pass is saved.
        if layout.scale != 1:
            b_OR = b_OR * layout.scale
        base.products.add_linear(y_TO[rows, part.start : part.start + part.d_out], h_part, b_OR)
    return h_TR


@dataclass(frozen=True)
class _SiteGroup:
    """A group's adapter at one site."""

    group: LoraGroup
    layer: int
    site: str


def _send_back(x_TI: Tensor, h_TR: Tensor, dy_TO: Tensor, products: Products, site_group: _SiteGroup) -> Tensor:
    """One group's gradients, added to its `grad`, and its part of the gradient of x; all for its own rows."""
    group, key = site_group.group, (site_group.layer, site_group.site)
    layout = group.weights.layout
    dh_TR = torch.empty_like(h_TR)
    for index, (part, b_OR) in enumerate(zip(layout.places[key].shape.parts, group.weights.b(*key), strict=True)):
        columns = slice(index * layout.rank, (index + 1) * layout.rank)
        dy_part = dy_TO[:, part.start : part.start + part.d_out]
        dh_TR[:, columns] = products.matmul(dy_part, b_OR)
        if group.grad is not None:
            # `grad` is a view of the model's flat gradient vector, in fp32, and adds up over micro-batches.
            group.grad.b(*key)[index].add_(dy_part.T @ h_TR[:, columns], alpha=layout.scale)
    dh_TR.mul_(layout.scale)
    if group.grad is not None:
        group.grad.a(*key).add_(dh_TR.T @ x_TI)
    return products.matmul(dh_TR, group.weights.a(*key))

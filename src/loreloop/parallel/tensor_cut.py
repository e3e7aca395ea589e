"""The tensor plan: which numbers of a decoder and of its adapters a rank holds.

Heads and the widths between two products of a layer are cut. A product whose outputs are cut (a *column* product) has
its weight's rows cut, its adapter's B with them, and A is copied; one whose inputs are cut (a *row* product) has
columns and A cut, and B is copied: it gives partial sums, and its adapter's part is a partial sum as well. What is
copied gets from each rank a part of its gradient. Source of the two kinds: Shoeybi et al. 2019 (arXiv 1909.08053).

A rank's share is a decoder's spec of its own, with fewer heads and narrower layers, so the decoder is built as ever.

Legend: O outputs, I inputs, R rank of an adapter, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.cut import Factor, Held, Weight
from loreloop.parallel.mesh import Axis
from loreloop.protocol.training import LoraSpec

COLUMN = {"qkv", "gate_up", "shared.gate_up", "experts.gate_up", "q_b", "kv_b"}
ROW = {"o", "down", "shared.down", "experts.down"}
COPIED = {"q_kv_a"}  # its outputs serve all heads


@dataclass(frozen=True)
class TensorCut:
    """The share of `rank` among `size` ranks, of the decoder `spec`. See `cut.Cut`."""

    spec: DecoderSpec
    rank: int
    size: int

    @property
    def axis(self) -> Axis:
        """Heads and widths."""
        return "tp"

    @property
    def local(self) -> DecoderSpec:
        """The decoder that a rank holds."""
        spec, n, moe = self.spec, self.size, self.spec.moe
        if moe is not None:
            moe = replace(moe, d_expert=moe.d_expert // n, d_shared=moe.d_shared // n)
        # Latent attention has one latent for all heads, and no heads of keys that could be cut.
        n_kv_heads = spec.n_kv_heads if spec.latent and spec.n_kv_heads % n else spec.n_kv_heads // n
        return replace(spec, n_heads=spec.n_heads // n, n_kv_heads=n_kv_heads, d_ff=spec.d_ff // n, moe=moe)

    def layout(self, lora: LoraSpec) -> LoraLayout:
        """That of an adapter for the narrower decoder."""
        return LoraLayout(self.local, lora)

    def weight(self, role: str, weight: Weight) -> Weight:
        """See `cut.Cut`. Weights in 4 bits are not cut yet."""
        assert isinstance(weight, Tensor), role
        layer, _, site = role.partition(".")
        if not layer.isdecimal():
            return weight  # embedding, head and final norm
        site, is_bias = site.removesuffix(".bias"), site.endswith(".bias")
        expert, _, inner = site.partition(".")
        site = f"experts.{inner}" if expert.isdecimal() else site
        if site == "sinks" or site in COLUMN:
            return weight[self._outputs(site)].contiguous()
        if site in ROW and is_bias:
            # Added once: a partial sum that every rank gave a bias would have it many times.
            return weight if self.rank == 0 else torch.zeros_like(weight)
        return weight[:, self._inputs(site)].contiguous() if site in ROW else weight

    def adapter(self, view: AdapterView, local: AdapterView) -> None:
        """Fills a rank's adapter from a whole one."""
        for layer, site in view.layout.places:
            for mine, whole in self._pairs(layer, site, view, local):
                mine.copy_(whole)

    def held(self, site: str, factor: Factor) -> Held:
        """The factor on the side that is cut is cut, the other has a part of its gradient on each rank. The
        unembedding's are whole on every rank, since what they multiply is."""
        if site not in COLUMN | ROW | COPIED:
            return "copied"
        return "cut" if site in (ROW if factor == "a" else COLUMN) else "partial"

    def _pairs(self, layer: int, site: str, view: AdapterView, local: AdapterView) -> Iterator[tuple[Tensor, Tensor]]:
        """Each of the rank's matrices at a site with what it is of the whole adapter."""
        key = (layer, site)
        a = view.a(*key)
        yield local.a(*key), a[..., self._inputs(site)] if site in ROW else a
        parts = view.layout.places[key].shape.parts
        rows = self._outputs(site) if site in COLUMN else torch.arange(sum(part.d_out for part in parts))
        for part, mine, b in zip(parts, local.b(*key), view.b(*key), strict=True):
            stop = part.start + part.d_out
            yield mine, b[..., rows[(rows >= part.start) & (rows < stop)] - part.start, :]

    def _inputs(self, site: str) -> slice:
        """Which inputs of a row product the rank has."""
        width = {"o": self.spec.d_attended, "down": self.spec.d_ff}.get(site, 0)
        if self.spec.moe:
            width = {"shared.down": self.spec.moe.d_shared, "experts.down": self.spec.moe.d_expert}.get(site, width)
        return slice(self.rank * width // self.size, (self.rank + 1) * width // self.size)

    def _outputs(self, site: str) -> Tensor:
        """Which outputs of a column product the rank has: its share of each of the blocks that are fused there."""
        starts, found = 0, []
        for width in self._blocks(site):
            share = width // self.size
            found.append(torch.arange(starts + self.rank * share, starts + (self.rank + 1) * share))
            starts += width
        return torch.cat(found)

    def _blocks(self, site: str) -> tuple[int, ...]:
        spec, latent = self.spec, self.spec.latent
        blocks: Mapping[str, tuple[int, ...]] = {
            "sinks": (spec.n_heads,),
            "qkv": (spec.d_q, spec.d_kv, spec.d_kv),
            "gate_up": (spec.d_ff, spec.d_ff),
            "q_b": (spec.n_heads * spec.d_head,),
            "kv_b": (spec.n_heads * (latent.d_nope + latent.d_value),) if latent else (),
            "shared.gate_up": (spec.moe.d_shared,) * 2 if spec.moe else (),
            "experts.gate_up": (spec.moe.d_expert,) * 2 if spec.moe else (),
        }
        return blocks[site]

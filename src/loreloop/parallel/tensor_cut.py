"""The tensor plan: which numbers of a decoder and of its adapters a rank holds.

Heads and the widths between two products of a layer are cut. A product whose outputs are cut (a *column* product) has
its weight's rows cut, its adapter's B with them, and A is copied; one whose inputs are cut (a *row* product) has
columns and A cut, and B is copied: it gives partial sums, and its adapter's part is a partial sum as well. What is
copied gets from each rank a part of its gradient. Source of the two kinds: Shoeybi et al. 2019 (arXiv 1909.08053).
Embedding and head are cut by tokens, and the head is a column product. Some outputs of a column product are not cut, or
among fewer ranks: latents that come out beside queries, and heads of keys where there are fewer of them than ranks.

A rank's share is a decoder's spec of its own, with fewer heads and narrower layers, so the decoder is built as ever.

Legend: O outputs, I inputs, R rank of an adapter, E experts, V tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loreloop.model.lora import UNEMBED, AdapterView, LoraLayout
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.cut import Factor, Held, Shared, Weight
from loreloop.parallel.mesh import Axis
from loreloop.parallel.vocabulary import vocabulary_borders
from loreloop.protocol.training import ExpertForm, LoraSpec

COLUMN = {"qkv", "gate_up", "shared.gate_up", "experts.gate_up", "q_b", "kv_b", UNEMBED}
ROW = {"o", "down", "shared.down", "experts.down"}
FIRST = "q_kv_a"  # latents, and queries or what they are made of: a column product only where it gives queries


@dataclass(frozen=True)
class _Block:
    """Outputs that lie side by side in a fused product, and among how many shares they are cut: all ranks, or fewer,
    which neighbours then hold together."""

    width: int
    n_shares: int


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
        n_kv_heads = spec.n_heads // n if spec.latent else spec.n_kv_heads // self._kv_shares
        start, stop = self.tokens
        return replace(
            spec,
            vocab_size=stop - start,
            n_heads=spec.n_heads // n,
            n_kv_heads=n_kv_heads,
            d_ff=spec.d_ff // n,
            moe=moe,
        )

    @property
    def tokens(self) -> tuple[int, int]:
        """The first token of which the rank holds the rows of embedding and head, and the one behind the last."""
        borders = vocabulary_borders(self.spec.vocab_size, self.size)
        return borders[self.rank], borders[self.rank + 1]

    @property
    def kv_copies(self) -> int:
        """How many ranks hold a head of keys."""
        return self.size // self._kv_shares

    @property
    def _kv_shares(self) -> int:
        return min(self.size, self.spec.n_kv_heads)

    def layout(self, lora: LoraSpec) -> LoraLayout:
        """That of an adapter for the narrower decoder."""
        return LoraLayout(self.local, lora)

    def weight(self, role: str, weight: Weight) -> Weight:
        """See `cut.Cut`. A packed weight whose share has no whole tiles or groups comes unpacked."""
        if not weight.shape[0]:
            return weight  # it lies on other stages, and there is nothing to cut
        if role in ("embedding", "head"):
            return _taken(weight, torch.arange(*self.tokens), None)
        layer, _, site = role.partition(".")
        if not layer.isdecimal():
            return weight  # the final norm
        site, is_bias = site.removesuffix(".bias"), site.endswith(".bias")
        expert, _, inner = site.partition(".")
        site = f"experts.{inner}" if expert.isdecimal() else site
        if self._is_column(site) or site == "sinks" or (site in ("q_norm", "k_norm") and self.spec.qk_norm == "whole"):
            return _taken(weight, self._outputs(site), None)
        if site in ROW and is_bias:
            assert isinstance(weight, Tensor), role
            # Added once: a partial sum that every rank gave a bias would have it many times.
            return weight if self.rank == 0 else torch.zeros_like(weight)
        return _taken(weight, None, self._inputs(site)) if site in ROW else weight

    def adapter(self, view: AdapterView, local: AdapterView) -> None:
        """Fills a rank's adapter from a whole one."""
        for layer, site in view.layout.places:
            for mine, whole in self._pairs(layer, site, view, local):
                mine.copy_(whole)

    def held(self, site: str, factor: Factor, form: ExpertForm) -> Held:
        """The factor on the side that is cut is cut, the other has a part of its gradient on each rank."""
        if factor == "a":
            return "cut" if site in ROW else "partial"
        return "cut" if self._is_column(site) else "partial"

    def shared(self, mine: AdapterView) -> Iterator[Shared]:
        """Rows of B for outputs that several ranks have."""
        for key, place in mine.layout.places.items():
            start = 0
            for block in self._blocks(key[1]) if self._is_column(key[1]) else ():
                stop = start + block.width // block.n_shares
                for part, b in zip(place.shape.parts, mine.b(*key), strict=True):
                    first, last = max(start - part.start, 0), min(stop - part.start, part.d_out)
                    if block.n_shares < self.size and first < last:
                        yield Shared(b[..., first:last, :], self.size // block.n_shares)
                start = stop

    def _is_column(self, site: str) -> bool:
        latent = self.spec.latent
        return site in COLUMN or (site == FIRST and latent is not None and latent.q_rank is None)

    def _pairs(self, layer: int, site: str, view: AdapterView, local: AdapterView) -> Iterator[tuple[Tensor, Tensor]]:
        """Each of the rank's matrices at a site with what it is of the whole adapter."""
        key = (layer, site)
        a = view.a(*key)
        yield local.a(*key), a[..., self._inputs(site)] if site in ROW else a
        parts = view.layout.places[key].shape.parts
        rows = self._outputs(site) if self._is_column(site) else torch.arange(sum(part.d_out for part in parts))
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
        if site == UNEMBED:
            return torch.arange(*self.tokens)
        starts, found = 0, []
        for block in self._blocks(site):
            width = block.width // block.n_shares
            start = starts + self.rank * block.n_shares // self.size * width
            found.append(torch.arange(start, start + width))
            starts += block.width
        return torch.cat(found)

    def _blocks(self, site: str) -> tuple[_Block, ...]:
        spec, latent, n = self.spec, self.spec.latent, self.size
        keys = _Block(spec.d_kv, self._kv_shares)
        queries = _Block(spec.n_heads * spec.d_head, n)
        blocks: Mapping[str, tuple[_Block, ...]] = {
            "sinks": (_Block(spec.n_heads, n),),
            "qkv": (_Block(spec.d_q, n), keys, keys),
            "q_norm": (_Block(spec.d_q, n),),
            "k_norm": (keys,),
            "gate_up": (_Block(spec.d_ff, n),) * 2,
            "q_b": (queries,),
            FIRST: (queries, _Block(latent.kv_rank + latent.d_rope, 1)) if latent else (),
            "kv_b": (_Block(spec.n_heads * (latent.d_nope + latent.d_value), n),) if latent else (),
            "shared.gate_up": (_Block(spec.moe.d_shared, n),) * 2 if spec.moe else (),
            "experts.gate_up": (_Block(spec.moe.d_expert, n),) * 2 if spec.moe else (),
            UNEMBED: (),
        }
        return blocks[site]


def _taken(weight: Weight, outputs: Tensor | None, inputs: slice | None) -> Weight:
    """Some outputs, or some inputs, as a tensor of its own: of a view the whole would stay in memory."""
    if isinstance(weight, PackedWeight):
        return weight.share(outputs, inputs)
    return weight[outputs] if outputs is not None else weight[:, inputs].contiguous()

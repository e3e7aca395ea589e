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
from loreloop.model.lora_region import WHOLE, Factor, Matrix, Region
from loreloop.model.packed_weights import PackedWeight
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.cut import Held, Shared, Weight
from loreloop.parallel.mesh import Axis
from loreloop.parallel.vocabulary import vocabulary_borders
from loreloop.protocol.training import ExpertForm

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

    def region(self, matrix: Matrix, whole: LoraLayout) -> Region:
        """Columns of A at a row product, rows of B at a column product."""
        if matrix.factor == "a":
            return Region(columns=self._inputs(matrix.site)) if matrix.site in ROW else WHOLE
        return Region(rows=self._part_rows(matrix, whole)) if self._is_column(matrix.site) else WHOLE

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

    def _part_rows(self, matrix: Matrix, whole: LoraLayout) -> tuple[slice, ...]:
        """Which outputs of one part of a column product the rank has, counted from the part's own first."""
        part = whole.places[matrix.layer, matrix.site].shape.parts[matrix.part]
        clipped = (
            (max(run.start - part.start, 0), min(run.stop - part.start, part.d_out)) for run in self._runs(matrix.site)
        )
        return tuple(slice(start, stop) for start, stop in clipped if start < stop)

    def _inputs(self, site: str) -> slice:
        """Which inputs of a row product the rank has."""
        width = {"o": self.spec.d_attended, "down": self.spec.d_ff}.get(site, 0)
        if self.spec.moe:
            width = {"shared.down": self.spec.moe.d_shared, "experts.down": self.spec.moe.d_expert}.get(site, width)
        return slice(self.rank * width // self.size, (self.rank + 1) * width // self.size)

    def _outputs(self, site: str) -> Tensor:
        """Which outputs of a column product the rank has."""
        return torch.cat([torch.arange(run.start, run.stop) for run in self._runs(site)])

    def _runs(self, site: str) -> Iterator[range]:
        """The rank's share of each of the blocks that are fused there."""
        if site == UNEMBED:
            yield range(*self.tokens)
        starts = 0
        for block in self._blocks(site):
            width = block.width // block.n_shares
            start = starts + self.rank * block.n_shares // self.size * width
            yield range(start, start + width)
            starts += block.width

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

"""The pipeline plan: a rank is a *stage* and holds a run of layers, whole, with their pages and their adapters.

The first stage has the embedding, the last one the head and its adapter; the final norm, a vector, is on all of them.
Nothing is cut within a layer, so each number of an adapter lies on one stage alone, and is added up there as one
process adds it up.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from loreloop.model.lora import AdapterView, LoraLayout, attention_sites, feed_forward_sites
from loreloop.model.lora_region import WHOLE, Factor, Matrix, Region
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.cut import Held, Shared, Weight, without_rows
from loreloop.parallel.mesh import Axis
from loreloop.protocol.training import ExpertForm


@dataclass(frozen=True)
class PipelineCut:
    """The layers of stage `rank` among `size` stages, of the decoder `spec`. See `cut.Cut`."""

    spec: DecoderSpec
    rank: int
    size: int

    @property
    def axis(self) -> Axis:
        """Layers."""
        return "pp"

    @cached_property
    def local(self) -> DecoderSpec:
        """The same decoder, with the numbers of the layers that lie here."""
        # Found once: it is asked for each weight, and a model has tens of thousands.
        mine = stage_layers(self.spec, self.size)[self.rank]
        return replace(self.spec, held=(mine.start, mine.stop))

    def weight(self, role: str, weight: Weight) -> Weight | None:
        """See `cut.Cut`. Where embedding or head lie elsewhere, a matrix without rows stands for them."""
        layer, local = role.partition(".")[0], self.local
        if layer.isdecimal():
            return weight if int(layer) in local.layers else None
        # Tied, the embedding is also the head, and lies on the first stage and on the last.
        here = {
            "embedding": self.rank == 0 or (self.spec.tie_embeddings and local.has_head),
            "head": local.has_head,
        }
        return weight if here.get(role, True) else without_rows(weight)

    def region(self, matrix: Matrix, whole: LoraLayout) -> Region:
        """What lies here lies here whole."""
        return WHOLE

    def held(self, site: str, factor: Factor, form: ExpertForm) -> Held:
        """Every matrix lies on one stage."""
        return "cut"

    def shared(self, mine: AdapterView) -> Iterator[Shared]:
        """No row lies on two stages."""
        return iter(())


@functools.lru_cache(maxsize=64)
def stage_layers(spec: DecoderSpec, n_stages: int) -> tuple[range, ...]:
    """The layers of each stage: runs of which the costliest costs as little as can be. There must be a layer for each
    stage."""
    costs = [layer_cost(spec, layer) for layer in range(spec.n_layers)]
    costs[-1] += head_cost(spec)
    # The least bound that the stages can keep is looked for by halves; it lies between one layer and all of them.
    low, high = max(costs), sum(costs)
    while low < high:
        bound = (low + high) // 2
        low, high = (low, bound) if len(_filled(costs, bound)) <= n_stages else (bound + 1, high)
    widths = _filled(costs, low)
    # A bound may be kept by fewer stages than there are. Halving the longest one breaks no bound.
    while len(widths) < n_stages:
        longest = widths.index(max(widths))
        widths[longest : longest + 1] = [(widths[longest] + 1) // 2, widths[longest] // 2]
    ends = list(accumulate(widths))
    return tuple(range(end - width, end) for end, width in zip(ends, widths, strict=True))


def _filled(costs: Sequence[int], bound: int) -> list[int]:
    """How many layers each stage takes where it takes as many as the bound allows, from the last layer backwards."""
    # Backwards, so that what is left over is the first stage's, which has the embedding besides.
    widths, room = [0], bound
    for cost in reversed(costs):
        if cost > room:
            widths.append(0)
            room = bound
        widths[-1] += 1
        room -= cost
    return widths[::-1]


def layer_cost(spec: DecoderSpec, layer: int) -> int:
    """Multiplications of a token in a layer's products; of experts those that it is routed to."""
    sites = attention_sites(spec)
    if spec.latent:
        # The second products of queries and latents carry no adapter, and so are no sites.
        latent, d_heads = spec.latent, spec.n_heads
        inner = latent.kv_rank * d_heads * (latent.d_nope + latent.d_value)
        inner += (latent.q_rank or 0) * d_heads * spec.d_head
    else:
        inner = 0
    if spec.moe and spec.routes(layer):
        sites |= feed_forward_sites(spec, spec.moe.top_k * spec.moe.d_expert + spec.moe.d_shared)
    else:
        sites |= feed_forward_sites(spec, spec.d_ff)
    return inner + sum(shape.d_in * shape.d_out for shape in sites.values())


def head_cost(spec: DecoderSpec) -> int:
    """Multiplications of a token in the head. The embedding multiplies nothing, and costs its memory alone."""
    return spec.vocab_size * spec.d_model

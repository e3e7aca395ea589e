"""How many numbers an adapter has, from a configuration alone; nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from loreloop.model.lora import site_shapes
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.training import ExpertForm, LoraSpec


@dataclass(frozen=True)
class AdapterCount:
    """Numbers of each trained part at one rank."""

    mlp: int
    attn: int
    unembed: int

    @property
    def total(self) -> int:
        """The numbers of an adapter that trains everything."""
        return self.mlp + self.attn + self.unembed


def count_adapter(spec: DecoderSpec, rank: int = 1, experts: ExpertForm = "shared_outer") -> AdapterCount:
    """The sizes of an adapter's parts at one rank, with experts in the given form. They grow in proportion to the rank,
    so rank 1 gives numbers per rank."""

    def size(lora: LoraSpec) -> int:
        layers = range(spec.n_layers)
        return sum(shape.size(rank) for layer in layers for shape in site_shapes(spec, lora, layer).values())

    return AdapterCount(
        # Each part is counted as an adapter that trains that part alone, so that the count cannot drift from the
        # layout.
        mlp=size(LoraSpec(rank, 0, train_attn=False, experts=experts)),
        attn=size(LoraSpec(rank, 0, train_mlp=False)),
        # The unembedding is a site behind the last layer and therefore in none of the layers that `size` visits.
        unembed=rank * (spec.d_model + spec.vocab_size),
    )

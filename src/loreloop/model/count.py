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
        return self.mlp + self.attn + self.unembed


def count_adapter(spec: DecoderSpec, rank: int = 1, experts: ExpertForm = "shared_outer") -> AdapterCount:
    def size(lora: LoraSpec) -> int:
        layers = range(spec.n_layers)
        return sum(shape.size(rank) for layer in layers for shape in site_shapes(spec, lora, layer).values())

    return AdapterCount(
        mlp=size(LoraSpec(rank, 0, train_attn=False, experts=experts)),
        attn=size(LoraSpec(rank, 0, train_mlp=False)),
        unembed=rank * (spec.d_model + spec.vocab_size),
    )

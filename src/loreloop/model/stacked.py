"""Experts that a folder holds as one tensor a layer, taken apart into those of each expert.

Legend: E experts, I inputs, O outputs; published inputs first (E, I, O), by some tools outputs first (E, O, I).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from loreloop.model.families.family import WeightNames
from loreloop.model.spec import DecoderSpec

GATE_UP, DOWN = ".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"


def unstacked(name: str, tensor: Tensor, spec: DecoderSpec, names: WeightNames) -> Iterator[tuple[str, Tensor]]:
    """The tensor, or, if it holds all experts of a layer, the parts of each under their own names."""
    if spec.moe is None or not name.endswith((GATE_UP, DOWN)) or tensor.dim() != 3:
        yield name, tensor
        return
    gate, up, down = names.expert_parts
    parts = [(gate, spec.moe.d_expert), (up, spec.moe.d_expert)] if name.endswith(GATE_UP) else [(down, spec.d_model)]
    n_outputs = sum(size for _, size in parts)
    tensor_EOI = tensor.transpose(1, 2) if tensor.shape[2] == n_outputs else tensor
    layer = int(name.split(".layers.")[1].split(".")[0])
    for expert, weight_OI in enumerate(tensor_EOI):
        at = 0
        for part, size in parts:
            yield names.expert.format(layer=layer, expert=expert, part=part), weight_OI[at : at + size]
            at += size

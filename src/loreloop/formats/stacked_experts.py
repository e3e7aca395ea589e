"""Experts that a folder holds as one tensor a layer, taken apart into those of each expert.

Legend: E experts, I inputs, O outputs; published inputs first (E, I, O), by some tools outputs first (E, O, I).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from loreloop.model.families.family import WeightNames
from loreloop.model.spec import DecoderSpec

NAME = re.compile(r".*\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj")


def inputs_first(tensors: Iterable[tuple[str, Callable[[], Tensor]]], spec: DecoderSpec) -> bool:
    """How a folder's stacked experts lie, told by one tensor of them whose two sides are of different widths."""
    if spec.moe is None:
        return False
    kind, n_outputs = ("gate_up", 2 * spec.moe.d_expert)
    # A square tensor does not tell its sides apart, so the other kind is asked.
    if n_outputs == spec.d_model:
        kind, n_outputs = "down", spec.d_model
    for name, read in tensors:
        if (found := NAME.fullmatch(name)) and found[2] == kind:
            return bool(read().shape[-1] == n_outputs)
    return False


def unstacked(
    name: str, tensor: Tensor, spec: DecoderSpec, names: WeightNames, *, inputs_first: bool
) -> Iterator[tuple[str, Tensor]]:
    """The tensor, or, if it holds all experts of a layer, the parts of each under their own names."""
    found = NAME.fullmatch(name)
    if spec.moe is None or found is None or tensor.dim() != 3:
        yield name, tensor
        return
    gate, up, down = names.expert_parts
    parts = [(gate, spec.moe.d_expert), (up, spec.moe.d_expert)] if found[2] == "gate_up" else [(down, spec.d_model)]
    for expert, weight_OI in enumerate(tensor.transpose(1, 2) if inputs_first else tensor):
        start = 0
        for part, size in parts:
            yield names.expert.format(layer=found[1], expert=expert, part=part), weight_OI[start : start + size]
            start += size

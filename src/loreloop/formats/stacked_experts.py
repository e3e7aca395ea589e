"""Experts that a folder holds as one tensor a layer, taken apart into those of each expert.

Legend: E experts, I inputs, O outputs; published inputs first (E, I, O), by some tools outputs first (E, O, I).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from loreloop.formats.stored_tensors import Stored
from loreloop.model.families.family import WeightNames
from loreloop.model.spec import DecoderSpec, MoeSpec

NAME = re.compile(r".*\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj(_bias)?")


def inputs_first(tensors: Iterable[tuple[str, Callable[[], Tensor]]], spec: DecoderSpec) -> bool:
    """How a folder's stacked experts lie, told by one tensor of them whose two sides are of different widths."""
    if spec.moe is None:
        return False
    kind, n_outputs = ("gate_up", 2 * spec.moe.d_expert)
    # A square tensor does not tell its sides apart, so the other kind is asked.
    if n_outputs == spec.d_model:
        kind, n_outputs = "down", spec.d_model
    for name, read in tensors:
        if (found := NAME.fullmatch(name)) and found[2] == kind and not found[3]:
            shape = read.shape if isinstance(read, Stored) else read().shape
            return bool(shape[-1] == n_outputs)
    return False


def unstacked(
    name: str, tensor: Tensor, spec: DecoderSpec, names: WeightNames, *, inputs_first: bool
) -> Iterator[tuple[str, Tensor]]:
    """The tensor, or, if it holds all experts of a layer, the parts of each under their own names."""
    found = NAME.fullmatch(name)
    if spec.moe is None or found is None or tensor.dim() != (2 if found[3] else 3):
        yield name, tensor
        return
    stack = tensor.transpose(1, 2) if inputs_first and not found[3] else tensor
    template = names.expert_bias if found[3] else names.expert
    for expert, weight_O in enumerate(stack):
        for part, rows in _parts(found[2], spec.d_model, spec.moe, names):
            yield template.format(layer=found[1], expert=expert, part=part), weight_O[rows]


def expert_names(name: str, spec: DecoderSpec, names: WeightNames) -> Iterator[tuple[int, str, slice]]:
    """The number, name and rows of every expert's part of a stacked weight; none where the name is no such weight's."""
    found = NAME.fullmatch(name)
    if spec.moe is None or found is None:
        return
    for expert in range(spec.moe.n_experts):
        for part, rows in _parts(found[2], spec.d_model, spec.moe, names):
            yield expert, names.expert.format(layer=found[1], expert=expert, part=part), rows


def _parts(kind: str, d_model: int, moe: MoeSpec, names: WeightNames) -> list[tuple[str, slice]]:
    """Which rows of a stacked weight are whose."""
    gate, up, down = names.expert_parts
    if kind == "down":
        return [(down, slice(0, d_model))]
    if moe.by_turns:
        return [(gate, slice(0, None, 2)), (up, slice(1, None, 2))]
    return [(gate, slice(0, moe.d_expert)), (up, slice(moe.d_expert, 2 * moe.d_expert))]

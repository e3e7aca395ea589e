"""What a layer keeps for its way back, as autograd is measured to keep it, is what the formula says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loreloop.formats.configuration import read_spec
from loreloop.parallel.activations import kept_a_row
from loreloop.parallel.place import ALONE
from loreloop.protocol.training import LoraSpec
from tests.engine.train_rig import datum, random_tokens, train_pass
from tests.parallel.expert_rank import logps_of, state_of, trainer_of
from tests.tiny import make_tiny_model

N_ROWS, FP32 = 256, 4
CASES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {},
    "qwen3_moe": {},
    "deepseek_v3": {},
}


def experts_keep(graph: Any) -> Iterator[Tensor]:
    """What routed experts keep beside autograd, in a layer's graph."""
    seen, waiting = set(), [graph]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if work := getattr(node, "work", None):
            yield from work.gate_ups
            yield from (each for adapter in work.adapters for each in (adapter.h_TR, adapter.z_TR))
        waiting += [following for following, _ in node.next_functions]


@pytest.mark.parametrize("family", CASES)
def test_a_layer_keeps_what_the_formula_says(family: str, tmp_path: Path) -> None:
    folder, lora = make_tiny_model(tmp_path / "model", family, **CASES[family]), LoraSpec(4, 0)
    trainer, state, spec = trainer_of(ALONE, folder), state_of(ALONE, folder, lora), read_spec(folder)
    measured: dict[int, float] = {}
    compute = trainer.decoder.layer

    def watched(index: int, x_TD: Tensor, ropes: Any, *others: Any) -> Tensor:
        kept: dict[int, int] = {}

        def note(saved: Tensor) -> Tensor:
            storage = saved.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            y_TD = compute(index, x_TD, ropes, *others)
        # Angles are those of all layers, and weights are there in any case.
        rope = ropes.of(spec.attention, index)
        for shared in (rope.cos_T1E, rope.sin_T1E):
            kept.pop(shared.untyped_storage().data_ptr(), None)
        for own in experts_keep(y_TD.grad_fn):
            kept[own.untyped_storage().data_ptr()] = own.untyped_storage().nbytes()
        measured[index] = sum(size for size in kept.values() if size > 1024) / N_ROWS
        return y_TD

    trainer.decoder.layer = watched  # type: ignore[method-assign]
    logps_of(trainer, state, train_pass(datum(random_tokens(N_ROWS, 1))))
    for layer in spec.layers:
        # Experts' rows are filled up to multiples of 32.
        slack = 0.08 if spec.routes(layer) else 1e-9
        assert measured[layer] == pytest.approx(kept_a_row(spec, lora, layer, FP32), rel=slack)

"""Ranks that hold shares of a decoder give the log-probabilities and gradients of one process."""

from pathlib import Path

import pytest
import torch

from loreloop.engine.attention import FastAttention
from loreloop.engine.head import Head
from loreloop.engine.training.trainer import Trainer
from loreloop.formats.load import load_decoder
from loreloop.model.linear import FastProducts
from tests.engine.train_rig import CPU, laid_out, relative_error
from tests.parallel.one_rank import trained_rank
from tests.parallel.rig import on_ranks
from tests.parallel.scene import scene, whole_state
from tests.tiny import make_tiny_model

FAMILIES = {
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "gemma2": {},
    "gpt_oss": {},
    "qwen3_moe": {},
    "deepseek_v3": {},
    "granite": {},
}


def one_process(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    decoder = load_decoder(folder, dtype=torch.float32, device=CPU, products=FastProducts())
    state = whole_state(decoder.spec)
    work = laid_out(scene(), state)
    Trainer(decoder, FastAttention(), Head(decoder, fixed_rows=False), 1024, 1024).run([work])
    return torch.cat([torch.tensor(o["logprobs"].numpy()) for o in work.result().outputs]), state.grad


@pytest.mark.parametrize("mesh", ["tp=2", "tp=4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_give_what_one_process_gives(family: str, mesh: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", family, num_key_value_heads=4)
    logps, grad = one_process(folder)
    gathered = torch.full_like(grad, torch.nan)
    for found in on_ranks(mesh, tmp_path, trained_rank, folder):
        assert (found["logps"] - logps).abs().max() <= 1e-5
        held = gathered[found["numbers"]]
        # What several ranks hold is the same bits on each.
        both = ~held.isnan()
        assert torch.equal(held[both], found["grad"][both])
        gathered[found["numbers"]] = found["grad"]
    assert not gathered.isnan().any(), "every number of the adapter is held by some rank"
    assert relative_error(gathered, grad) <= 1e-5

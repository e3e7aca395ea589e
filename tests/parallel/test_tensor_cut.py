"""Ranks that hold shares of a decoder give the log-probabilities and gradients of one process."""

import itertools
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
    "olmo2": {},
    "no query rank": {"family": "deepseek_v3", "q_lora_rank": None},
    "few keys": {"family": "qwen3", "num_key_value_heads": 2},
    "few fused keys": {"family": "phi3", "num_key_value_heads": 1},
    "few keys, normed together": {"family": "olmo2", "num_key_value_heads": 2},
    "odd vocabulary": {"family": "qwen2", "vocab_size": 509, "tie_word_embeddings": False},
}


def one_process(
    folder: Path, max_rows: int = 1024, kept_rows: int = 1024, *, quantize: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    decoder = load_decoder(folder, dtype=torch.float32, device=CPU, products=FastProducts(), quantize=quantize)
    state = whole_state(decoder.spec)
    work = laid_out(scene(), state)
    Trainer(decoder, FastAttention(), Head(decoder, fixed_rows=False), max_rows, kept_rows).run([work])
    return torch.cat([torch.tensor(o["logprobs"].numpy()) for o in work.result().outputs]), state.grad


# The latents' first product under cuts of rows gives wrong gradients elsewhere, and so it stands here by name.
BY_ROWS = ("qwen3", "gemma2", "qwen3_moe", "deepseek_v3", "no query rank", "few keys, normed together")
MESHES = [*itertools.product(FAMILIES, ("tp=2", "tp=4")), *itertools.product(BY_ROWS, ("sp=2",)), ("qwen3", "sp=4")]


@pytest.mark.parametrize(("name", "mesh"), MESHES)
def test_ranks_give_what_one_process_gives(name: str, mesh: str, tmp_path: Path) -> None:
    settings = {"family": name, "num_key_value_heads": 4, **FAMILIES[name]}
    folder = make_tiny_model(tmp_path / "model", **settings)
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

"""Ranks that hold layers of a decoder give the log-probabilities and gradients of one process."""

from pathlib import Path

import pytest
import torch

from loreloop.formats.configuration import read_spec
from loreloop.model.packed_weights import PackedWeight
from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.shares import share_of
from tests.engine.train_rig import relative_error
from tests.parallel.one_rank import trained_rank
from tests.parallel.rig import on_ranks
from tests.parallel.test_tensor_cut import one_process
from tests.tiny import make_tiny_model

LAYERS = 5
FAMILIES = {"qwen3": {}, "gemma2": {}, "qwen3_moe": {}, "deepseek_v3": {}}
TOGETHER = 1024, 1024  # rows of a micro-batch, and rows whose activations are kept
SEVERAL = 32, 32
UNTIED = {"num_key_value_heads": 4, "tie_word_embeddings": False}
COMPUTED_AGAIN = 16, 16


def put_together(found: list[dict[str, torch.Tensor]], grad: torch.Tensor) -> torch.Tensor:
    gathered = torch.full_like(grad, torch.nan)
    for rank in found:
        gathered[rank["numbers"]] = rank["grad"]
    assert not gathered.isnan().any(), "every number of the adapter is held by some rank"
    return gathered


@pytest.mark.parametrize("mesh", ["pp=2", "pp=4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stages_give_the_bits_of_one_process(family: str, mesh: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", family, num_hidden_layers=LAYERS)
    logps, grad = one_process(folder, *SEVERAL)
    found = on_ranks(mesh, tmp_path, trained_rank, folder, *SEVERAL)
    assert all(torch.equal(rank["logps"], logps) for rank in found)
    assert torch.equal(put_together(found, grad), grad)


@pytest.mark.parametrize("rows", [TOGETHER, COMPUTED_AGAIN], ids=["together", "computed again"])
def test_micro_batches_do_not_matter(rows: tuple[int, int], tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen3_moe", num_hidden_layers=LAYERS)
    logps, grad = one_process(folder, *rows)
    found = on_ranks("pp=2", tmp_path, trained_rank, folder, *rows)
    assert all(torch.equal(rank["logps"], logps) for rank in found)
    assert torch.equal(put_together(found, grad), grad)


@pytest.mark.parametrize("mesh", ["pp=2,tp=2", "pp=2,sp=2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stages_are_cut_in_turn(family: str, mesh: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", family, num_hidden_layers=LAYERS, num_key_value_heads=4)
    logps, grad = one_process(folder, *SEVERAL)
    found = on_ranks(mesh, tmp_path, trained_rank, folder, *SEVERAL)
    assert all((rank["logps"] - logps).abs().max() <= 1e-5 for rank in found)
    assert relative_error(put_together(found, grad), grad) <= 1e-5


@pytest.mark.parametrize("settings", [UNTIED, {"num_key_value_heads": 4}], ids=["untied", "tied"])
@pytest.mark.parametrize("mesh", ["pp=2,tp=2", "pp=3,tp=2", "pp=2,sp=2"])
def test_embedding_and_head_that_lie_on_other_stages_are_not_cut(mesh: str, settings: dict, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen3", num_hidden_layers=LAYERS, **settings)
    logps, grad = one_process(folder, *SEVERAL)
    found = on_ranks(mesh, tmp_path, trained_rank, folder, *SEVERAL)
    assert all((rank["logps"] - logps).abs().max() <= 1e-5 for rank in found)
    assert relative_error(put_together(found, grad), grad) <= 1e-5


def test_a_packed_matrix_that_lies_elsewhere_has_no_rows(tmp_path: Path) -> None:
    spec = read_spec(make_tiny_model(tmp_path / "model", "qwen3", **UNTIED))
    packed = PackedWeight.empty((512, 64), 8, torch.bfloat16)
    for role, holder in (("embedding", 0), ("head", 1)):
        mine = [share_of(spec, parse_mesh("pp=2,tp=2"), rank).weight(role, packed) for rank in range(4)]
        assert [tuple(weight.shape) for weight in mine] == [(256 * (rank // 2 == holder), 64) for rank in range(4)]


@pytest.mark.parametrize("settings", [UNTIED, {}], ids=["untied", "tied"])
@pytest.mark.parametrize("mesh", ["pp=2", "pp=3"])
def test_stages_in_4_bits_give_the_bits_of_one_process(mesh: str, settings: dict, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen3", num_hidden_layers=LAYERS, **settings)
    logps, grad = one_process(folder, *SEVERAL, quantize=True)
    found = on_ranks(mesh, tmp_path, trained_rank, folder, *SEVERAL, True)
    assert all(torch.equal(rank["logps"], logps) for rank in found)
    assert torch.equal(put_together(found, grad), grad)

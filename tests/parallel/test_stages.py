"""A pipeline samples and trains as one process does, at the same time too; what it sends; and how it is broken off."""

from pathlib import Path

import pytest
import torch

from loreloop.engine.training.model_state import write_checkpoint
from loreloop.engine.training.packing import PackItem, pack
from loreloop.formats.configuration import read_spec
from loreloop.parallel.place import ALONE
from tests.engine.train_rig import laid_out
from tests.parallel.one_rank import trained_rank
from tests.parallel.rig import on_ranks
from tests.parallel.scene import scene, whole_state
from tests.parallel.stage_rank import (
    both_rank,
    broken_rank,
    constrained_rank,
    replaying_rank,
    sampling_rank,
    saving_rank,
)
from tests.tiny import make_tiny_model

FAMILIES = ["qwen3", "gemma2", "qwen3_moe", "deepseek_v3"]


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model", request.param, num_hidden_layers=5)


@pytest.mark.parametrize("mesh", ["pp=2", "pp=3"])
def test_samples_are_the_bits_of_one_process(mesh: str, folder: Path, tmp_path: Path) -> None:
    expected = sampling_rank(ALONE, folder, True)["answers"]
    for rank in on_ranks(mesh, tmp_path, sampling_rank, folder, True):
        assert rank["answers"] == expected


@pytest.mark.parametrize("mesh", ["pp=2", "pp=3"])
def test_grammars_have_one_history(mesh: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", num_hidden_layers=5)
    expected = constrained_rank(ALONE, folder)
    assert on_ranks(mesh, tmp_path, constrained_rank, folder) == [expected] * int(mesh[-1])


def test_training_pauses_at_the_same_time_on_all_stages(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen3_moe", num_hidden_layers=5)
    alone = both_rank(ALONE, folder)
    ranks = on_ranks("pp=3", tmp_path, both_rank, folder)
    assert {rank["n_pauses"] for rank in ranks} == {ranks[0]["n_pauses"]}
    for rank in ranks:
        assert rank["drawn"] == alone["drawn"]
        assert torch.equal(rank["logps"], alone["logps"])
    # Each number of the adapter lies on one stage, in the order of layers.
    assert torch.equal(torch.cat([rank["grad"] for rank in ranks]), alone["grad"])


@pytest.mark.parametrize("mesh", ["pp=2", "pp=3"])
def test_recorded_routes_reach_each_stage_and_loads_come_back(mesh: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "deepseek_v3", num_hidden_layers=5)
    alone = replaying_rank(ALONE, folder)
    assert any("e_out_of_route:sum" in metrics for metrics in alone["metrics"])
    ranks = on_ranks(mesh, tmp_path, replaying_rank, folder)
    for rank in ranks:
        assert torch.equal(rank["logps"], alone["logps"])
        assert rank["metrics"] == alone["metrics"]
    assert torch.equal(torch.cat([rank["grad"] for rank in ranks]), alone["grad"])


@pytest.mark.parametrize("after", [1, 4, 7, 12])
def test_what_was_sent_before_a_pass_broke_off_is_not_taken_for_the_next(after: int, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", num_hidden_layers=5)
    alone = broken_rank(ALONE, folder, 1)
    ranks = on_ranks("pp=3", tmp_path, broken_rank, folder, after)
    assert all(rank["broke_off"] for rank in ranks)
    assert all(torch.equal(rank["logps"], alone["logps"]) for rank in ranks)
    assert torch.equal(torch.cat([rank["grad"] for rank in ranks]), alone["grad"])


@pytest.mark.parametrize("after", [4, 9])
def test_rows_that_were_sent_before_a_pass_broke_off_are_not_taken_for_the_next(after: int, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", num_hidden_layers=5, num_key_value_heads=4)
    alone = broken_rank(ALONE, folder, 1)
    for rank in on_ranks("pp=2,sp=2", tmp_path, broken_rank, folder, after):
        assert rank["broke_off"]
        assert (rank["logps"] - alone["logps"]).abs().max() <= 1e-5


def test_a_stage_sends_hidden_states_once_each_way(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", num_hidden_layers=5)
    spec = read_spec(folder)
    tokens = [sequence.tokens for sequence in laid_out(scene(), whole_state(spec)).sequences]
    n_rows = len(pack([PackItem(index, 0, each) for index, each in enumerate(tokens)]).tokens_T)
    found = on_ranks("pp=3", tmp_path, trained_rank, folder)
    # In fp32, once to the next stage and once back, so the middle stage sends twice as much.
    assert [int(rank["sent"]) for rank in found] == [n_rows * spec.d_model * 4 * ways for ways in (1, 2, 1)]


def test_a_checkpoint_goes_from_one_mesh_to_another(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", num_hidden_layers=5)
    state = whole_state(read_spec(folder))
    state.moment1.copy_(state.master * 0.1)
    state.moment2.copy_(state.master.square())
    state.n_steps = 3
    write_checkpoint(tmp_path / "alone", state, "tiny")
    before = tmp_path / "alone"
    for mesh in ("tp=2", "pp=2", "pp=2,tp=2"):
        target, met = tmp_path / mesh.replace(",", "-"), tmp_path / f"{mesh}.ranks"
        met.mkdir()
        on_ranks(mesh, met, saving_rank, folder, before, target)
        before = target
    saving_rank(ALONE, folder, before, tmp_path / "again")
    for file in (tmp_path / "alone").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name

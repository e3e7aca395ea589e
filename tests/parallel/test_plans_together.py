"""Plans that cut one decoder in turn give the log-probabilities and gradients of one process."""

from datetime import timedelta
from pathlib import Path

import pytest

from loreloop.cli.ranks import WAIT_DAYS
from tests.engine.train_rig import relative_error
from tests.parallel.one_rank import patience, trained_rank
from tests.parallel.rig import on_ranks
from tests.parallel.test_pipeline_cut import LAYERS, SEVERAL, put_together
from tests.parallel.test_tensor_cut import one_process
from tests.tiny import make_tiny_model

EXPERTS: dict[str, dict[str, int]] = {"qwen3_moe": {"num_experts": 8}, "deepseek_v3": {}}


@pytest.mark.parametrize("mesh", ["sp=2,ep=2", "pp=2,ep=2", "pp=2,ep=2,tp=2", "pp=2,ep=2,sp=2"])
@pytest.mark.parametrize("family", EXPERTS)
def test_plans_that_cut_in_turn_give_what_one_process_gives(family: str, mesh: str, tmp_path: Path) -> None:
    settings = {"num_hidden_layers": LAYERS, "num_key_value_heads": 4, **EXPERTS[family]}
    folder = make_tiny_model(tmp_path / "model", family, **settings)
    logps, grad = one_process(folder, *SEVERAL)
    found = on_ranks(mesh, tmp_path, trained_rank, folder, *SEVERAL)
    assert all((rank["logps"] - logps).abs().max() <= 1e-5 for rank in found)
    assert relative_error(put_together(found, grad), grad) <= 1e-5


@pytest.mark.parametrize("mesh", ["tp=2", "pp=2,ep=2"])
def test_ranks_of_an_axis_wait_as_long_as_all_do(mesh: str, tmp_path: Path) -> None:
    for found in on_ranks(mesh, tmp_path, patience):
        assert len(found) == 1 + len(mesh.split(","))
        assert set(found.values()) == {timedelta(days=WAIT_DAYS).total_seconds()}

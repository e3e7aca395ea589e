"""A server whose engine is two processes that share a model's experts, by the SDK: it gives what one process gives."""

from pathlib import Path

import pytest

from loreloop.protocol.errors import ServerError
from tests.parallel.test_mesh_server import seen, server

PACKED = ("--precision", "bf16", "--quantize", "int4")


def test_two_processes_with_half_the_experts_give_what_one_gives(tmp_path: Path) -> None:
    with server(tmp_path / "one", family="qwen3_moe") as running:
        losses_1, samples_1, later_1 = seen(running)
    with server(tmp_path / "two", "--mesh", "ep=2", family="qwen3_moe") as running:
        losses, samples, later = seen(running)
    assert losses == pytest.approx(losses_1, rel=1e-5)
    assert samples == samples_1
    assert later == pytest.approx(later_1, rel=1e-5)


@pytest.mark.slow
def test_packed_experts_lie_on_two_processes(tmp_path: Path) -> None:
    with server(tmp_path / "one", *PACKED, family="qwen3_moe") as running:
        losses_1, _, _ = seen(running)
    with server(tmp_path / "two", "--mesh", "ep=2", *PACKED, family="qwen3_moe") as running:
        losses, _, _ = seen(running)
    # In bf16 parts are rounded before they are added, so the two agree to its rounding and no further.
    assert losses == pytest.approx(losses_1, rel=1e-2)


def test_a_dense_model_is_refused_at_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ServerError, match="did not start"), server(tmp_path / "data", "--mesh", "ep=2"):
        pass
    assert "no routed experts, which 2 ranks could share. The nearest is tp=1" in capfd.readouterr().err

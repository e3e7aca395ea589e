"""A pipeline of a model that sees gives what one process gives, and a broken image ends nothing but its request."""

from pathlib import Path
from typing import Any

import pytest
import torch

from loreloop.parallel.place import ALONE
from tests.parallel.rig import on_ranks
from tests.parallel.test_tensor_life import both
from tests.parallel.vision_rank import seeing_rank, struck_rank
from tests.tiny_vision import make_tiny_vision_model

CASES = [("qwen3_vl", "pp=2"), ("qwen3_vl", "pp=3"), ("qwen3_vl_moe", "pp=2"), ("llava", "pp=2")]


@pytest.mark.parametrize(("family", "mesh"), CASES)
def test_stages_that_see_give_the_bits_of_one_process(family: str, mesh: str, tmp_path: Path) -> None:
    folder = make_tiny_vision_model(tmp_path / "model", family)
    alone, ranks = both(tmp_path, mesh, seeing_rank, folder, {"deterministic": True})
    for found in ranks:
        assert torch.equal(found.pop("logps"), alone["logps"])
        assert found == {name: value for name, value in alone.items() if name != "logps"}


@pytest.mark.parametrize("mesh", ["pp=2,tp=2", "pp=2,sp=2"])
def test_stages_that_see_are_cut_in_turn(mesh: str, tmp_path: Path) -> None:
    folder = make_tiny_vision_model(tmp_path / "model", "qwen3_vl")
    alone, ranks = both(tmp_path, mesh, seeing_rank, folder, {})
    for found in ranks:
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert (found["logps"] - alone["logps"]).abs().max() <= 1e-5
        assert found["tokens"] == alone["tokens"]
        for request, answers in alone["logprobs"].items():
            for index, logprobs in answers.items():
                assert found["logprobs"][request][index] == pytest.approx(logprobs, abs=1e-5)


def test_an_image_that_nobody_can_decode_ends_its_own_pass_and_sample(tmp_path: Path) -> None:
    alone, ranks = struck(tmp_path, "pp=2", "broken")
    for found in (alone, *ranks):
        assert [message.partition(": ")[:2] for message in found["said"]] == [("Datum 1", ": ")]
        assert "The image cannot be decoded: " in found["said"][0]
        assert len(found["beside"]) == 2
        assert found["said"] == [f"Datum 1: {message}" for message in found["failures"]]
    for found in ranks:
        assert_alike(found, alone)


@pytest.mark.parametrize("mesh", ["pp=2", "tp=2"])
def test_an_image_that_one_process_cannot_decode_is_refused_by_all(mesh: str, tmp_path: Path) -> None:
    alone, ranks = struck(tmp_path, mesh, "there")
    for found in ranks:
        assert found["said"] == ["1 of 2 processes of this engine could not do it; see the log."]
        assert found["failures"] == found["said"]
        if mesh == "pp=2":
            alone |= {name: found[name] for name in ("said", "beside", "failures")}
            assert_alike(found, alone)


def struck(tmp_path: Path, mesh: str, fault: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = make_tiny_vision_model(tmp_path / "model", "qwen3_vl")
    (tmp_path / "one").mkdir()
    alone = struck_rank(ALONE, folder, tmp_path / "one", "broken")
    return alone, on_ranks(mesh, tmp_path, struck_rank, folder, tmp_path, fault)


def assert_alike(found: dict[str, Any], alone: dict[str, Any]) -> None:
    assert torch.equal(found["logps"], alone["logps"])
    assert {**found, "logps": None} == {**alone, "logps": None}

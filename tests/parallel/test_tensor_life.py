"""What an engine of two ranks gives over a life of training and sampling is what one process gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loreloop.parallel.place import ALONE
from tests.parallel.life import Seen, bits, life, replayed, summed_rows, vision_life
from tests.parallel.rig import on_ranks
from tests.tiny import make_tiny_model
from tests.tiny_vision import make_tiny_vision_model

EVERYWHERE = {"train_unembed": True}
LIVES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dense": ("qwen2", {"num_key_value_heads": 2, "vocab_size": 512}, EVERYWHERE),
    "experts": ("qwen3_moe", {}, {"experts": "shared_outer"}),
    "an expert each": ("qwen3_moe", {}, {"experts": "per_expert"}),
    "latents": ("deepseek_v3", {"q_lora_rank": None}, EVERYWHERE),
}


def both(tmp_path: Path, mesh: str, work: Any, folder: Path, *arguments: Any) -> tuple[Seen, list[Seen]]:
    for name in ("one", "ranks"):
        (tmp_path / name).mkdir()
    alone = work(ALONE, folder, tmp_path / "one", *arguments)
    return alone, on_ranks(mesh, tmp_path, work, folder, tmp_path / "ranks", *arguments)


@pytest.mark.parametrize(
    ("name", "mesh"), [*((name, "tp=2") for name in LIVES), ("dense", "tp=4"), ("latents", "sp=2")]
)
def test_a_life_is_that_of_one_process(name: str, mesh: str, tmp_path: Path) -> None:
    family, sizes, lora = LIVES[name]
    folder = make_tiny_model(tmp_path / "model", family, **sizes)
    alone, ranks = both(tmp_path, mesh, life, folder, {}, lora)
    for found in ranks:
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert found["tokens"] == alone["tokens"]
        for request, answers in alone["logprobs"].items():
            for index, logprobs in answers.items():
                assert found["logprobs"][request][index] == pytest.approx(logprobs, abs=1e-5)
        scores = (np.frombuffer(each["scores"], "<f4")[1:] for each in (found, alone))
        np.testing.assert_allclose(*scores, atol=1e-5)
        # Not near, but equal: the first speaks for all of them.
        assert found["reports"] == ranks[0]["reports"]
        assert found["logprobs"] == ranks[0]["logprobs"]
    check_copies(ranks)
    torch.testing.assert_close(ranks[0]["whole"], alone["whole"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("mesh", ["tp=2", "sp=2"])
def test_ranks_stay_alike_in_bf16(mesh: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen3_moe")
    alone, ranks = both(tmp_path, mesh, life, folder, {"precision": "bf16"}, {"experts": "shared_outer"})
    for found in ranks:
        assert found["losses"] == pytest.approx(alone["losses"], rel=0.02)
        assert found["losses"] == ranks[0]["losses"]
        assert found["logprobs"] == ranks[0]["logprobs"]
    check_copies(ranks)


def check_copies(ranks: list[Seen]) -> None:
    """What several ranks hold has the same bits on each after several steps: copied factors whose gradients were not
    summed, or that began apart, would have drifted."""
    whole = torch.full_like(ranks[0]["whole"], torch.nan)
    n_held = 0
    for found in ranks:
        held = whole[found["numbers"]]
        there = ~held.isnan()
        assert torch.equal(held[there], found["mine"][there])
        whole[found["numbers"]] = found["mine"]
        n_held += len(found["numbers"])
    assert torch.equal(whole, ranks[0]["whole"])
    assert n_held > len(whole), "some numbers are held by several"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_experts_that_sampling_chose_are_trained_with(precision: str, quantize: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen3_moe", moe_intermediate_size=64)
    settings = {"precision": precision, "quantize": quantize}
    alone, ranks = both(tmp_path, "tp=2", replayed, folder, settings)
    near = 1e-5 if precision == "fp32" else 0.1
    for found in ranks:
        assert found["routes"] == ranks[0]["routes"]
        assert (found["sampled"] - found["trained"]).abs().max() <= near
        if precision == "fp32":
            assert found["tokens"] == alone["tokens"]
            assert (found["trained"] - alone["trained"]).abs().max() <= near
        else:  # rounded elsewhere, two decoders draw other tokens sooner or later
            assert abs(float(found["trained"].mean() - alone["trained"].mean())) <= 1


@pytest.mark.parametrize("mesh", ["tp=2", "sp=2"])
def test_a_model_that_sees_gives_what_one_process_gives(mesh: str, tmp_path: Path) -> None:
    folder = make_tiny_vision_model(tmp_path / "model", "qwen3_vl")
    alone, ranks = both(tmp_path, mesh, vision_life, folder, {})
    for found in ranks:
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert found["tokens"] == alone["tokens"]
        assert found["logprobs"] == pytest.approx(alone["logprobs"], abs=1e-5)


@pytest.mark.parametrize("mesh", ["tp=2", "tp=4", "sp=4"])
def test_training_finds_the_bits_that_sampling_reported_when_deterministic(mesh: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", "qwen2", vocab_size=509)
    for found in on_ranks(mesh, tmp_path, bits, folder, tmp_path):
        assert torch.equal(found["trained"], found["sampled"])


def test_a_row_of_a_sum_does_not_depend_on_its_place(tmp_path: Path) -> None:
    first, *others = on_ranks("tp=4", tmp_path, summed_rows)
    assert torch.equal(first["together"], torch.cat(first["alone"]))
    assert all(torch.equal(first["together"], other["together"]) for other in others)

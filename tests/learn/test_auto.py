"""The written rules of what `auto` means."""

import json
from pathlib import Path

import pytest

from loreloop.learn.auto import Asked, Chosen, Shape, auto_batch, auto_epochs, auto_rate, chosen, shape_of
from loreloop.protocol.errors import BadRequest

LLAMA = Shape("llama", 2048)


@pytest.mark.parametrize(("n", "epochs"), [(1, 25), (10, 10), (33, 4), (34, 3), (8333, 3), (8334, 2), (30_000, 1)])
def test_epochs_by_the_number_of_examples(n: int, epochs: int) -> None:
    assert auto_epochs(n) == epochs


@pytest.mark.parametrize(("n", "epochs", "batch"), [(1, 25, 1), (100, 3, 4), (1000, 3, 32), (10**6, 1, 32)])
def test_batches_leave_enough_steps(n: int, epochs: int, batch: int) -> None:
    assert auto_batch(n, epochs) == batch


def test_the_rate_is_the_cookbooks() -> None:
    cookbook = pytest.importorskip("tinker_cookbook.hyperparam_utils")
    for name, family, width in (("Qwen/Qwen3-8B", "qwen3", 4096), ("meta-llama/Llama-3.2-1B", "llama", 2048)):
        assert auto_rate("sft", Shape(family, width)) == pytest.approx(cookbook.get_lr(name), rel=1e-6)
    assert auto_rate("dpo", LLAMA) == pytest.approx(0.1 * auto_rate("sft", LLAMA))
    assert auto_rate("sft", Shape("mixtral", 4096)) == 5e-4


def test_what_is_asked_for_stays(tmp_path: Path) -> None:
    asked = Asked(epochs=2, batch_size=5, learning_rate=1e-3)
    assert chosen("sft", 10, tmp_path, asked) == Chosen(2, 5, 1e-3)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 2048}))
    assert chosen("sft", 10, tmp_path, Asked(multiplier=2)).learning_rate == 2 * auto_rate("sft", LLAMA)


def test_the_shape_is_read_from_the_folder(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "x", "text_config": {"model_type": "qwen3", "hidden_size": 64}}))
    assert shape_of(tmp_path) == Shape("qwen3", 64)
    config.write_text("{}")
    with pytest.raises(BadRequest, match="names no hidden_size"):
        shape_of(tmp_path)

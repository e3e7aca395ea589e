"""The GPU's parts on a tiny model: the decoding part at the real one's ratio of prompts, tokens and steps."""

import dataclasses
import json

import pytest

from bench import gpu
from bench.gpu import TINY_DECODING, Bench, Decoding, decode, run_part, train
from bench.gpu_model import TINY, write_model
from bench.rig import Figure
from loreloop.engine.sampling.sampler import MOST_PROMPTS


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "model"
    write_model(folder, TINY | {"vocab_size": 49_000}, "cpu")
    return Bench("cpu", True, folder)


def test_there_are_steps_in_which_all_rows_draw(bench):
    assert TINY_DECODING.n_rows == Decoding().n_rows
    figures = {figure.name: figure.value for figure in decode(bench)}
    assert len(figures) == 3
    assert all(value > 0 for value in figures.values())


@pytest.mark.parametrize("shape", [Decoding(), TINY_DECODING])
def test_the_last_prompts_end_before_the_first_answers(shape):
    a_step = min(MOST_PROMPTS, shape.prefill_tokens // shape.context)
    assert shape.n_rows / a_step < shape.n_new


def test_the_cache_holds_every_row():
    shape, a_token = Decoding(), 36 * 2 * 8 * 128 * 2
    assert shape.n_rows * (shape.context + shape.n_new) * a_token <= shape.cache_mib << 20


def test_too_few_new_tokens_are_refused(bench, monkeypatch):
    monkeypatch.setattr(gpu, "TINY_DECODING", dataclasses.replace(TINY_DECODING, n_new=8))
    with pytest.raises(RuntimeError, match="more new tokens"):
        list(decode(bench))


def test_what_was_measured_before_a_failure_is_kept(bench, tmp_path, monkeypatch, capsys):
    def failing(bench):
        """Fails."""
        yield Figure("one", 1.0, "x", at_least=0.5)
        raise RuntimeError("no memory")

    monkeypatch.setitem(gpu.PARTS, "train", failing)
    with pytest.raises(RuntimeError):
        run_part("train", bench, tmp_path)
    record = json.loads((tmp_path / "gpu-train.json").read_text())
    assert record["figures"] == [{"name": "one", "value": 1.0, "unit": "x", "at_least": 0.5, "met": True}]
    assert record.keys() >= {"date", "device", "versions", "commit", "seconds"}
    assert "one" in capsys.readouterr().out


def test_training_is_measured(bench):
    assert [figure.value > 0 for figure in train(bench)] == [True, True]

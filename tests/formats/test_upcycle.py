"""Experts made of a dense model: the same numbers as it comes, other ones with noise, the same bytes from one seed."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from loreloop.formats.adding import add
from loreloop.formats.catalog import Catalog
from loreloop.formats.stored_tensors import stream_tensors
from loreloop.formats.upcycle import Upcycling, upcycle
from loreloop.protocol.errors import BadRequest
from tests.model.plain import load, logprobs, tokens
from tests.tiny import make_tiny_model

PERTURBED = Upcycling(noise=0.05, skew=4.0, seed=3)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model") / "dense")


def tensors(folder):
    return {name: read() for name, read in stream_tensors(folder)}


def made(dense, folder, recipe, **options):
    folder.mkdir()
    upcycle(dense, folder, recipe, **options)
    return folder


def test_as_it_comes_it_is_the_dense_model(dense, tmp_path):
    own = load(made(dense, tmp_path / "moe", Upcycling()))
    assert own.spec.moe.n_experts == 4
    assert (logprobs(own, [tokens(40)]) - logprobs(load(dense), [tokens(40)])).abs().max() <= 1e-4


@pytest.mark.numbers
def test_with_noise_it_equals_transformers_and_the_experts_differ(dense, tmp_path):
    folder = made(dense, tmp_path / "moe", PERTURBED, shard_bytes=100_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    own, model = load(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = logprobs(own, [tokens(40)])
    with torch.no_grad():
        assert (before - model(torch.tensor([tokens(40)])).logits[0].log_softmax(-1)).abs().max() <= 1e-4
    for layer in own.layers:
        experts = layer.feed_forward.experts
        experts[0], experts[1] = experts[1], experts[0]
    assert (before - logprobs(own, [tokens(40)])).abs().max() > 0.1


def test_noise_is_as_large_as_it_is_called(dense, tmp_path):
    plain, noisy = (tensors(made(dense, tmp_path / str(r.noise), r)) for r in (Upcycling(), PERTURBED))
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    size = (noisy[name] - plain[name]).norm() / plain[name].norm()
    assert size == pytest.approx(0.05, rel=0.05)
    rows = noisy["model.layers.0.block_sparse_moe.gate.weight"].norm(dim=1)
    assert rows[3] / rows[0] == pytest.approx(4, rel=0.5)


def test_one_seed_makes_the_same_model(dense, tmp_path):
    first, second = (tensors(made(dense, tmp_path / name, PERTURBED)) for name in "ab")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_other_families_are_refused(tmp_path):
    other = make_tiny_model(tmp_path / "qwen", "qwen2")
    with pytest.raises(BadRequest, match="qwen2"):
        upcycle(other, tmp_path, Upcycling())


def test_the_catalog_makes_it_of_the_dense_model_that_it_holds(dense, tmp_path):
    catalog = Catalog(tmp_path)
    add(catalog, str(dense), "smollm2-135m")
    entry = add(catalog, "smollm2-moe-4x135m", recipe=PERTURBED)
    assert entry.spec.moe.n_experts == 4
    assert (entry.folder / "tokenizer.json").exists()
    with pytest.raises(BadRequest, match="no noise"):
        add(catalog, str(dense), "mine", PERTURBED)

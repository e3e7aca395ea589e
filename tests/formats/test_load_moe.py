"""Loading folders with routed experts and latents: what belongs to the model, what does not, what is missing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from loreloop.formats.configuration import read_spec
from loreloop.protocol.errors import BadRequest
from tests.model.plain import load, logprobs, tokens
from tests.tiny import make_tiny_model

WEIGHTS = "model.safetensors"
EXPERT = "model.layers.2.mlp.experts.7"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", "deepseek_v3")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "tiny")


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_missing_expert_is_refused_by_name(folder):
    rewrite(folder, lambda tensors: tensors.pop(f"{EXPERT}.up_proj.weight"))
    with pytest.raises(BadRequest, match=r"lacks 1 tensors.*layers\.2\.mlp\.experts\.7\.up_proj"):
        load(folder)


def test_one_expert_too_many_is_refused_by_name(folder):
    rewrite(folder, lambda t: t.update({"model.layers.1.mlp.experts.8.down_proj.weight": torch.zeros(64, 32)}))
    with pytest.raises(BadRequest, match=r"layers\.1\.mlp\.experts\.8\.down_proj"):
        load(folder)


def test_an_expert_of_another_width_is_refused_with_both_shapes(folder):
    rewrite(folder, lambda tensors: tensors.update({f"{EXPERT}.gate_proj.weight": torch.zeros(33, 64)}))
    with pytest.raises(BadRequest, match=r"experts\.7\.gate_proj.*\[33, 64\].*\[32, 64\]"):
        load(folder)


def test_the_layer_that_guesses_further_ahead_is_let_pass(folder, made):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.3.eh_proj.weight": torch.zeros(64, 128)}))
    assert torch.equal(logprobs(load(folder), [tokens(10)]), logprobs(load(made), [tokens(10)]))


def test_routers_with_a_bias_stay_fp32(folder):
    router = load(folder, dtype=torch.bfloat16).layers[1].feed_forward.router
    assert router.linear.weight_OI.dtype == router.bias_E.dtype == torch.float32
    assert router.bias_E.any()


def test_a_token_leaves_its_latent_alone_in_the_cache(folder):
    assert read_spec(folder).cache.size == 32 + 8


def test_kimi_is_the_same_under_its_own_name(folder, made):
    configure(folder, model_type="kimi_k2", scoring_func="sigmoid", topk_method="noaux_tc")
    assert torch.equal(logprobs(load(folder), [tokens(10)]), logprobs(load(made), [tokens(10)]))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"attention_bias": True}, "biases"),
        ({"scoring_func": "softmax"}, "scoring_func = 'softmax'"),
        ({"topk_method": "greedy"}, "topk_method = 'greedy'"),
        ({"rope_scaling": {"type": "dynamic"}, "rope_parameters": None}, "longrope"),
    ],
)
def test_what_is_not_known_is_refused_by_name(folder, changes, names):
    configure(folder, **changes)
    with pytest.raises(BadRequest, match=names):
        read_spec(folder)

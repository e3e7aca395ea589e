"""Decoders with routed experts against transformers on the same weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from loreloop.model.linear import BaseLinear, FastProducts
from loreloop.model.lora import NO_ADAPTERS
from loreloop.model.routed_feed_forward import Router
from loreloop.model.spec import MoeSpec
from tests.model.plain import load, logprobs, tokens
from tests.tiny import make_tiny_model

YARN = {
    "rope_type": "yarn",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
CASES = {
    "mixtral": ("mixtral", {}),
    "mixtral-tied-3-of-8": ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3}),
    "mixtral-untied": ("mixtral", {"tie_word_embeddings": False}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe-every-second": ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": []}),
    "qwen3_moe-not-normalized": ("qwen3_moe", {"norm_topk_prob": False}),
    "deepseek_v3": ("deepseek_v3", {}),
    "deepseek_v3-yarn": ("deepseek_v3", {"rope_parameters": YARN}),
    "deepseek_v3-no-query-rank": ("deepseek_v3", {"q_lora_rank": None, "n_group": 1, "topk_group": 1}),
    "deepseek_v3-halves-all-shared": ("deepseek_v3", {"rope_interleave": False, "n_shared_experts": 2}),
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def folder(request, tmp_path_factory):
    family, settings = CASES[request.param]
    return make_tiny_model(tmp_path_factory.mktemp("model"), family, **settings)


def reference_logprobs(folder, sequence, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return model(torch.tensor([sequence])).logits[0].float().log_softmax(-1)


@pytest.mark.numbers
def test_log_probs_equal_transformers(folder):
    sequence = tokens(100)
    own = logprobs(load(folder), [sequence])
    assert (own - reference_logprobs(folder, sequence)).abs().max() <= 1e-4


def test_only_experts_of_the_chosen_groups_are_chosen_whatever_the_bias_makes_of_their_scores():
    spec = MoeSpec(8, 3, 4, (0,), "sigmoid", n_groups=4, top_groups=2)
    linear = BaseLinear(torch.zeros(8, 4), None, FastProducts())  # scores of 0.5
    bias_E = torch.tensor([-1.0, -2.0, -1.1, -1.9, -3.0, -3.0, -3.0, -3.0])
    ids_TK, weight_TK = Router(0, spec, linear, bias_E)(torch.zeros(1, 4), NO_ADAPTERS)
    assert sorted(ids_TK[0].tolist()) == [0, 2, 3]
    assert weight_TK[0].tolist() == pytest.approx([1 / 3] * 3)

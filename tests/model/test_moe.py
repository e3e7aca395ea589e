"""Decoders with routed experts against transformers on the same weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.model.plain import load, logprobs, tokens
from tests.tiny import make_tiny_model

CASES = {
    "mixtral": ("mixtral", {}),
    "mixtral-tied-3-of-8": ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3}),
    "mixtral-untied": ("mixtral", {"tie_word_embeddings": False}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe-every-second": ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": []}),
    "qwen3_moe-not-normalized": ("qwen3_moe", {"norm_topk_prob": False}),
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

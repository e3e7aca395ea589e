"""The decoder against transformers on the same weights, and its rows against their neighbours."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from loreloop.model.linear import TiledProducts
from tests.model.plain import CASES, hidden, load, logprobs, tokens
from tests.tiny import make_tiny_model


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


@pytest.mark.numbers
def test_packed_sequences_equal_transformers_one_by_one(folder):
    first, second = tokens(30, 1), tokens(50, 2)
    own = logprobs(load(folder), [first, second])
    theirs = torch.cat([reference_logprobs(folder, first), reference_logprobs(folder, second)])
    assert (own - theirs).abs().max() <= 1e-4


@pytest.mark.numbers
def test_bf16_is_no_further_from_fp32_than_transformers_own_bf16(folder):
    sequence = tokens(100)
    exact = reference_logprobs(folder, sequence)
    theirs = (reference_logprobs(folder, sequence, torch.bfloat16) - exact).abs().mean()
    own = (logprobs(load(folder, dtype=torch.bfloat16), [sequence]) - exact).abs().mean()
    assert own <= theirs


def test_the_residual_stream_is_fp32_and_the_head_sees_the_compute_dtype(tiny_folder):
    decoder = load(tiny_folder, dtype=torch.bfloat16)
    assert decoder.embed(torch.tensor([1, 2])).dtype == torch.float32
    assert hidden(decoder, [[1, 2]]).dtype == decoder.dtype == torch.bfloat16


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_with_tiled_products_a_token_never_depends_on_its_batch(tiny_folder, dtype, threads):
    """Attention of one token over itself gives its value back, so that every other part is seen alone."""
    decoder = load(tiny_folder, dtype=dtype, products=TiledProducts())
    singles = [[token] for token in tokens(67)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = hidden(decoder, singles)
        for start, stop in [(0, 1), (3, 4), (5, 38), (31, 33), (66, 67)]:
            assert torch.equal(hidden(decoder, singles[start:stop]), together[start:stop])
    finally:
        torch.set_num_threads(before)

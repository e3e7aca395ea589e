"""The kernels over the vocabulary against the tensor library's steps and the plain formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.engine.sampling.token_rng import RngKey, draw_tokens, philox, uniforms
from loreloop.engine.softmax import block_sums
from loreloop.kernels import vocab

pytestmark = pytest.mark.skipif(not vocab.supports(torch.empty(0)), reason="no C compiler")
SIZES = [1, 5, 255, 256, 257, 1000, 49_152]


def logits(n_rows, size, dtype, seed=0):
    return (3 * torch.randn(n_rows, size, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_softmax_is_the_plain_formula(size, dtype):
    logits_NV = logits(5, size, dtype)
    exact_NV, below_NV = logits_NV.double(), logits_NV.float() - logits_NV.float().amax(-1, keepdim=True)
    weight_NV, block_NB, total_N1, normalizer_N1 = vocab.softmax(logits_NV)
    expected_NV = below_NV.double().exp()
    torch.testing.assert_close(weight_NV.double(), expected_NV, rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(block_NB, block_sums(weight_NV), rtol=1e-6, atol=0)
    torch.testing.assert_close(total_N1.double(), expected_NV.sum(-1, keepdim=True), rtol=1e-6, atol=0)
    torch.testing.assert_close(normalizer_N1.double(), exact_NV.logsumexp(-1, keepdim=True), rtol=1e-6, atol=1e-6)
    assert torch.equal(vocab.normalizer(logits_NV), normalizer_N1)
    alone = [vocab.softmax(logits_NV[i : i + 1]) for i in range(5)]
    assert all(
        torch.equal(x[i], y[0])
        for i, one in enumerate(alone)
        for x, y in zip(vocab.softmax(logits_NV), one, strict=True)
    )


@pytest.mark.parametrize("size", SIZES)
def test_probabilities_take_the_logits_place(size):
    logits_NV = logits(3, size, torch.bfloat16)
    expected_NV, expected_N1 = logits_NV.float().softmax(-1), vocab.normalizer(logits_NV)
    assert torch.equal(vocab.to_probabilities(logits_NV), expected_N1)
    torch.testing.assert_close(logits_NV.float(), expected_NV, rtol=2**-8, atol=1e-37)


def test_logits_that_are_no_numbers():
    inf, nan = float("inf"), float("nan")
    logits_NV = torch.tensor([[0.0, -inf, 1.0], [nan, 0.0, 0.0], [inf, 0.0, 0.0], [-inf, -inf, -inf]])
    weight_NV, _, _, normalizer_N1 = vocab.softmax(logits_NV)
    assert weight_NV[0, 1] == 0
    assert normalizer_N1[0].isfinite()
    assert not normalizer_N1[1:].isfinite().any()


@settings(deadline=None, max_examples=200)
@given(
    size=st.sampled_from(SIZES[:-1]),
    seed=st.integers(0, 10_000),
    kept=st.floats(0.01, 1),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_draws_are_those_of_the_tensor_library(size, seed, kept, uniform):
    rng = np.random.default_rng(seed)
    weight_NV = torch.from_numpy(rng.exponential(size=(3, size)) * (rng.random((3, size)) < kept)).float()
    uniform_N = torch.tensor([0.0, uniform, 1 - 2.0**-53], dtype=torch.float64)
    block_NB = block_sums(weight_NV)
    by_kernel = vocab.draw(weight_NV, block_NB, uniform_N)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocab, "supports", lambda x: False)
        by_library = draw_tokens(weight_NV, block_NB, uniform_N)
    assert torch.equal(by_kernel, by_library)
    assert torch.equal(
        vocab.draw(weight_NV[1:2].expand(3, -1), block_NB[1:2].expand(3, -1), uniform_N)[1], by_kernel[1]
    )


@settings(deadline=None)
@given(
    st.lists(st.builds(RngKey, st.integers(0, 2**63 - 1), st.integers(0, 1023), st.integers(0, 1 << 20)), min_size=1)
)
def test_uniform_numbers_are_those_of_numpy(keys):
    counters = np.array([(k.position, k.sample_index, k.stream, 0) for k in keys], np.uint64)
    words = philox(counters, np.array([(k.seed & 0xFFFFFFFF, k.seed >> 32) for k in keys], np.uint64))
    expected = ((words[:, 0] << np.uint64(21)) ^ (words[:, 1] >> np.uint64(11))).astype(np.float64) * 2.0**-53
    assert (uniforms(keys) == expected).all()

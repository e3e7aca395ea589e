"""The kernel that reads newest tokens' keys in place, against the formula and against the attention of training."""

import pytest
import torch

from loreloop.engine.attention import FastAttention
from loreloop.engine.sampling.paged_attention import _rounds_like_training
from loreloop.kernels import cpu

pytestmark = pytest.mark.skipif(
    not cpu.attends(torch.empty(0), torch.bfloat16, 64), reason="no kernel for this processor"
)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def attend(q_BHE, cache_S2GE, slots, width):
    """Each row over the slots given for it, padded with slot 0."""
    slots_BK = torch.zeros(len(slots), width, dtype=torch.int64)
    for b, row in enumerate(slots):
        slots_BK[b, : len(row)] = row
    out_BHE = torch.full_like(q_BHE, float("nan"))
    n_keys_B = torch.tensor([len(row) for row in slots])
    cpu.attend_newest(q_BHE, cache_S2GE, cpu.NewestKeys(torch.arange(len(slots)), n_keys_B, slots_BK), out_BHE)
    return out_BHE


@pytest.mark.parametrize(
    ("n_heads", "n_groups", "d_head"), [(9, 3, 64), (4, 4, 32), (7, 1, 96), (8, 2, 128), (2, 1, 64)]
)
def test_it_is_the_formula(n_heads, n_groups, d_head):
    cache_S2GE, q_BHE = numbers(1500, 2, n_groups, d_head), 2 * numbers(4, n_heads, d_head, seed=1)
    slots = [torch.randperm(1500, generator=torch.Generator().manual_seed(n))[:n] for n in (1, 17, 512, 1201)]
    out_BHE = attend(q_BHE, cache_S2GE, slots, 1280)
    for q_HE, out_HE, row in zip(q_BHE.float(), out_BHE.float(), slots, strict=True):
        k_KGE, v_KGE = cache_S2GE[row].float().unbind(1)
        k_KHE, v_KHE = (x.repeat_interleave(n_heads // n_groups, 1) for x in (k_KGE, v_KGE))
        weight_HK = (torch.einsum("he,khe->hk", q_HE, k_KHE) / d_head**0.5).softmax(-1)
        torch.testing.assert_close(out_HE, torch.einsum("hk,khe->he", weight_HK, v_KHE), rtol=0.02, atol=0.01)


@pytest.mark.parametrize("n_keys", [1, 33, 192, 450, 1100])
def test_it_rounds_as_training_does(n_keys):
    if not _rounds_like_training(FastAttention, 9, 3, 64):
        pytest.skip("this library's attention adds up in another order, so the kernel is not used")
    cache_S2GE, q_KHE = numbers(n_keys, 2, 3, 64), 2 * numbers(n_keys, 9, 64, seed=1)
    expected_KHE = FastAttention().causal(q_KHE, *cache_S2GE.unbind(1))
    out_KHE = attend(q_KHE, cache_S2GE, [torch.arange(n + 1) for n in range(n_keys)], n_keys)
    assert torch.equal(out_KHE, expected_KHE)


def test_numbers_that_are_none_stay_in_their_row():
    cache_S2GE, q_BHE = numbers(100, 2, 3, 64), numbers(2, 9, 64)
    cache_S2GE[7] = float("nan")
    out_BHE = attend(q_BHE, cache_S2GE, [torch.arange(0, 50), torch.arange(50, 100)], 64)
    assert out_BHE[0].isnan().all()
    assert out_BHE[1].isfinite().all()

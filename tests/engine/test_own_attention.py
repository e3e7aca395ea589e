"""Attention by our own kernels: against the formula, and a query's bits in any company."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from loreloop.engine.attention import FastAttention, FixedAttention, Reach, kernel_rules
from loreloop.engine.sampling.paged_attention import PagedAttention, StepRow
from loreloop.kernels import attention
from loreloop.model.attention_rules import AttentionRules
from loreloop.model.rope import Rope

BF16 = torch.bfloat16
SHAPES = [(9, 3, 64), (4, 4, 32), (7, 1, 96), (8, 2, 128), (2, 1, 256)]  # query heads, key heads, width
pytestmark = pytest.mark.skipif(
    not attention.supports(torch.empty(0, dtype=BF16), 64), reason="no kernel for this processor"
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
    keys = attention.NewestKeys(torch.arange(len(slots)), n_keys_B, slots_BK)
    attention.attend_newest(q_BHE, cache_S2GE, keys, out_BHE)
    return out_BHE


def formula(q_QHE, k_KGE, v_KGV):
    """In fp32; the last query sees all keys."""
    k_KHE, v_KHV = (x.float().repeat_interleave(q_QHE.shape[1] // x.shape[1], 1) for x in (k_KGE, v_KGV))
    score_HQK = torch.einsum("qhe,khe->hqk", q_QHE.float(), k_KHE) / q_QHE.shape[2] ** 0.5
    n_queries, n_keys = score_HQK.shape[1:]
    hidden_QK = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(n_keys - n_queries + 1)
    weight_HQK = score_HQK.masked_fill(hidden_QK, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khv->qhv", weight_HQK, v_KHV)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
def test_newest_tokens_are_the_formula(shape):
    n_heads, n_groups, d_head = shape
    cache_S2GE, q_BHE = numbers(1500, 2, n_groups, d_head), 2 * numbers(4, n_heads, d_head, seed=1)
    slots = [torch.randperm(1500, generator=torch.Generator().manual_seed(n))[:n] for n in (1, 17, 512, 1201)]
    out_BHE = attend(q_BHE, cache_S2GE, slots, 1280)
    for q_HE, out_HE, row in zip(q_BHE, out_BHE.float(), slots, strict=True):
        expected_1HE = formula(q_HE[None], *cache_S2GE[row].unbind(1))
        torch.testing.assert_close(out_HE, expected_1HE[0], rtol=0.02, atol=0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (5, 5), (530, 530), (40, 1100), (1, 600)])
def test_queries_at_the_end_of_a_sequence_are_the_formula(shape, n_queries, n_keys, threads):
    n_heads, n_groups, d_head = shape
    q_QHE, kv_K2GE = 2 * numbers(n_queries, n_heads, d_head), numbers(n_keys, 2, n_groups, d_head, seed=1)
    out_QHE = FastAttention().causal(q_QHE, *kv_K2GE.unbind(1))
    torch.testing.assert_close(out_QHE.float(), formula(q_QHE, *kv_K2GE.unbind(1)), rtol=0.02, atol=0.01)


@pytest.mark.parametrize(("width", "value_width"), [(192, 128), (64, 32)])
def test_values_narrower_than_keys(width, value_width):
    q_QHE, k_KGE, v_KGV = numbers(70, 4, width), numbers(70, 2, width, seed=1), numbers(70, 2, value_width, seed=2)
    out_QHV = FastAttention().causal(q_QHE, k_KGE, v_KGV)
    torch.testing.assert_close(out_QHV.float(), formula(q_QHE, k_KGE, v_KGV), rtol=0.02, atol=0.01)


@pytest.mark.parametrize("n_keys", [1, 33, 192, 450, 1100])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_query_has_the_same_bits_in_any_company(shape, n_keys, threads):
    """Among all queries, as the newest token of a cache, at the end of a chunk, and beside other sequences."""
    n_heads, n_groups, d_head = shape
    cache_S2GE, q_KHE = numbers(n_keys, 2, n_groups, d_head), 2 * numbers(n_keys, n_heads, d_head, seed=1)
    k_KGE, v_KGE = cache_S2GE.unbind(1)
    fast = FastAttention()
    all_KHE = fast.causal(q_KHE, k_KGE, v_KGE)
    assert torch.equal(attend(q_KHE, cache_S2GE, [torch.arange(n + 1) for n in range(n_keys)], n_keys), all_KHE)
    half = (n_keys + 1) // 2
    assert torch.equal(fast.causal(q_KHE[:half], k_KGE[:half], v_KGE[:half]), all_KHE[:half])
    assert torch.equal(fast.causal(q_KHE[half - 1 :], k_KGE, v_KGE), all_KHE[half - 1 :])
    first_B = torch.tensor([half - 1, 0])
    queries, keys, values = (torch.stack((x, x.flip(0))) for x in (q_KHE, k_KGE, v_KGE))
    beside = fast.batched(queries[:, -half:], keys, values, Reach(first_B, half, n_keys))
    alone = fast.batched(queries[:1, -half:], keys[:1], values[:1], Reach(first_B[:1], half, n_keys))
    assert torch.equal(beside[0], alone[0])


RULES = [
    AttentionRules(window=60),
    AttentionRules(cap=5.0),
    AttentionRules(window=130, cap=9.0, sinks_H=torch.randn(9)),
]


@pytest.mark.parametrize("rules", RULES, ids=["window", "cap", "all"])
@pytest.mark.parametrize("n_keys", [40, 700])
def test_windows_caps_and_sinks(rules, n_keys):
    """Against the fixed attention in fp32; and the same bits as the newest token and at the end of a chunk."""
    cache_S2GE, q_KHE = numbers(n_keys, 2, 3, 64), 2 * numbers(n_keys, 9, 64, seed=1)
    k_KGE, v_KGE = cache_S2GE.unbind(1)
    all_KHE = FastAttention().causal(q_KHE, k_KGE, v_KGE, rules)
    expected_KHE = FixedAttention().causal(q_KHE.float(), k_KGE.float(), v_KGE.float(), rules)
    torch.testing.assert_close(all_KHE.float(), expected_KHE, rtol=0.02, atol=0.01)
    assert torch.equal(FastAttention().causal(q_KHE[-25:], k_KGE, v_KGE, rules), all_KHE[-25:])
    slots_KK, n_keys_K, newest_KHE = (
        torch.arange(n_keys).repeat(n_keys, 1),
        torch.arange(n_keys),
        torch.empty_like(q_KHE),
    )
    keys = attention.NewestKeys(n_keys_K, n_keys_K + 1, slots_KK)
    attention.attend_newest(q_KHE, cache_S2GE, keys, newest_KHE, kernel_rules(rules))
    assert torch.equal(newest_KHE, all_KHE)


def test_numbers_that_are_none_stay_in_their_row():
    cache_S2GE, q_BHE = numbers(100, 2, 3, 64), numbers(2, 9, 64)
    cache_S2GE[7] = float("nan")
    out_BHE = attend(q_BHE, cache_S2GE, [torch.arange(0, 50), torch.arange(50, 100)], 64)
    assert out_BHE[0].isnan().all()
    assert out_BHE[1].isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_key_that_is_no_number_is_seen_in_the_result(shape):
    """Its values are finite, so only its score can tell."""
    n_heads, n_groups, d_head = shape
    q_QHE, kv_K2GE = numbers(600, n_heads, d_head), numbers(600, 2, n_groups, d_head, seed=1)
    kv_K2GE[530, 0, :, 3] = float("nan")
    out_QHE = FastAttention().causal(q_QHE, *kv_K2GE.unbind(1))
    assert out_QHE[:530].isfinite().all()
    assert out_QHE[530:].isnan().all()
    assert attend(q_QHE[:2], kv_K2GE, [torch.arange(600), torch.arange(100)], 640)[0].isnan().all()


@pytest.mark.parametrize("key", [0, 1, 7, 40, 519])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_behind_a_query_leave_no_trace(shape, key):
    n_heads, n_groups, d_head = shape
    q_QHE, kv_K2GE = numbers(530, n_heads, d_head), numbers(530, 2, n_groups, d_head, seed=1)
    expected_QHE = FastAttention().causal(q_QHE, *kv_K2GE.unbind(1))
    kv_K2GE[key, 1] = float("inf")
    out_QHE = FastAttention().causal(q_QHE, *kv_K2GE.unbind(1))
    assert torch.equal(out_QHE[:key], expected_QHE[:key])
    assert not out_QHE[key].isfinite().any()


def test_newest_tokens_of_a_layer_that_turns_nothing():
    """Its queries are a part of the fused product, whose rows lie apart."""
    n_heads, n_groups, d_head = 4, 2, 32
    parts = numbers(2, (n_heads + 2 * n_groups) * d_head).split([n * d_head for n in (n_heads, n_groups, n_groups)], 1)
    q_THE, k_TGE, v_TGE = (part.unflatten(1, (-1, d_head)) for part in parts)
    cache_LS2GE, slots = numbers(1, 10, 2, n_groups, d_head, seed=1), (torch.tensor([3, 1]), torch.tensor([5, 7, 2]))
    rows = [StepRow(i, i + 1, slots_K) for i, slots_K in enumerate(slots)]
    attend_paged = PagedAttention(
        FastAttention(), SimpleNamespace(layer=cache_LS2GE.__getitem__), rows, kernels=True, in_place=True
    )
    out_THE = attend_paged(0, q_THE, k_TGE, v_TGE, Rope(torch.ones(2, 1, 0), torch.zeros(2, 1, 0)))
    for q_HE, out_HE, slots_K in zip(q_THE, out_THE.float(), slots, strict=True):
        expected_1HE = formula(q_HE[None], *cache_LS2GE[0, slots_K].unbind(1))
        torch.testing.assert_close(out_HE, expected_1HE[0], rtol=0.02, atol=0.01)


@pytest.mark.parametrize("wrong", range(3))
def test_other_dtypes_are_not_read_as_bf16(wrong):
    tensors = [numbers(1, 4, 2, 32) for _ in range(3)]
    tensors[wrong] = tensors[wrong].float()
    with pytest.raises(AssertionError, match="float32"):
        attention.attend_queries(*tensors, torch.tensor([0]))


def test_a_step_is_let_go_at_once():
    """Its masks and slots would otherwise wait for the collector."""
    gc.disable()
    try:
        rows = [StepRow(0, 1, torch.tensor([3, 1]))]
        step = PagedAttention(FastAttention(), SimpleNamespace(), rows, kernels=True, in_place=True)
        gone = weakref.ref(step)
        del step
        assert gone() is None
    finally:
        gc.enable()

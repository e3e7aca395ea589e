"""Windows, caps on scores and sinks, each alone and all together, against the formula: outputs and gradients."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from loreloop.engine import attention as attention_module
from loreloop.engine.attention import KEY_BLOCK, FastAttention, FixedAttention, Reach
from loreloop.engine.training.packing import PackItem, pack
from loreloop.engine.training.tree_attention import TreeAttention
from loreloop.engine.training.tree_backward import cap_scores
from loreloop.model.attention_rules import AttentionRules
from loreloop.model.rope import Rope

ATTENTIONS = {"fast": FastAttention(), "fixed": FixedAttention()}
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, -3.0])
RULES = {
    "window": AttentionRules(window=7),
    "narrow window": AttentionRules(window=2),
    "wide window": AttentionRules(window=150),
    "cap": AttentionRules(cap=0.8),
    "sinks": AttentionRules(sinks_H=SINKS),
    "all": AttentionRules(90, 1.5, SINKS),
}
KINDS = [("fast", torch.float32, 1e-5), ("fast", torch.bfloat16, 1e-2), ("fixed", torch.float32, 1e-5)]
TREES = {
    "alone": ["a" * 300],
    "a group": ["a" * 130 + letter * 40 for letter in "bcdefgh"],
    "nested": ["aaaab", "aaaac" + "d" * 150, "aaaac" + "e" * 9 + "f", "aaaac" + "e" * 9 + "g", "aa", "x" * 90],
}


def heads(n, n_heads, seed=0, d_head=16):
    return torch.randn(n, n_heads, d_head, generator=torch.Generator().manual_seed(seed))


def formula(q_QHE, k_KGE, v_KGE, seen_QK, distance_QK, rules):
    """Attention where `seen_QK`, of keys less than a window behind."""
    repeats = q_QHE.shape[1] // k_KGE.shape[1]
    k_KHE, v_KHE = (x.repeat_interleave(repeats, 1) for x in (k_KGE, v_KGE))
    score_HQK = torch.einsum("qhe,khe->hqk", q_QHE, k_KHE) / math.sqrt(q_QHE.shape[-1])
    if rules.cap is not None:
        score_HQK = rules.cap * torch.tanh(score_HQK / rules.cap)
    if rules.window is not None:
        seen_QK = seen_QK & (distance_QK < rules.window)
    weight_HQK = score_HQK.masked_fill(~seen_QK, -math.inf).exp()
    total_HQ1 = weight_HQK.sum(-1, keepdim=True)
    if rules.sinks_H is not None:
        total_HQ1 = total_HQ1 + rules.sinks_H.to(total_HQ1)[:, None, None].exp()
    return torch.einsum("hqk,khe->qhe", weight_HQK / total_HQ1, v_KHE)


def of_sequence(q_QHE, k_KGE, v_KGE, rules):
    position_Q1 = (len(k_KGE) - len(q_QHE) + torch.arange(len(q_QHE)))[:, None]
    distance_QK = position_Q1 - torch.arange(len(k_KGE))
    return formula(q_QHE, k_KGE, v_KGE, distance_QK >= 0, distance_QK, rules)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (1, 200), (20, 77), (300, 300), (270, 400)])
def test_a_sequence_is_the_formula(attention, rules, n_queries, n_keys):
    q_QHE, k_KGE, v_KGE = heads(n_queries, 6), heads(n_keys, 2, 1), heads(n_keys, 2, 2)
    own = attention.causal(q_QHE, k_KGE, v_KGE, rules)
    torch.testing.assert_close(own, of_sequence(q_QHE, k_KGE, v_KGE, rules), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
def test_single_queries_beside_each_other_are_the_formula(attention, rules):
    n_keys_B, n = [1, 66, 128], 128 + KEY_BLOCK
    q_BHE, k_BKGE, v_BKGE = heads(3, 6), *(heads(3 * n, 2, seed).view(3, n, 2, 16) for seed in (1, 2))
    reach = Reach(torch.tensor(n_keys_B) - 1, 1, n)
    o_B1HE = attention.batched(q_BHE[:, None], k_BKGE, v_BKGE, reach, rules)
    for o_1HE, q_HE, k_KGE, v_KGE, count in zip(o_B1HE, q_BHE, k_BKGE, v_BKGE, n_keys_B, strict=True):
        expected = of_sequence(q_HE[None], k_KGE[:count], v_KGE[:count], rules)
        torch.testing.assert_close(o_1HE, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cap", "sinks", "all"])
def test_scores_of_many_queries_are_never_there_all_at_once(name, monkeypatch):
    rules, n_scores, by_steps = RULES[name], [], attention_module._by_steps
    monkeypatch.setattr(FastAttention, "piece", 16)
    monkeypatch.setattr(
        attention_module, "_by_steps", lambda q, *rest: n_scores.append(q.shape[2]) or by_steps(q, *rest)
    )
    q_BQHE, k_BKGE, v_BKGE = (
        heads(2 * 70, 6).view(2, 70, 6, 16),
        *(heads(256, 2, s).view(2, 128, 2, 16) for s in (1, 2)),
    )
    o_BQHE = FastAttention().batched(q_BQHE, k_BKGE, v_BKGE, Reach(torch.tensor([3, 50]), 70, 128), rules)
    for o_QHE, q_QHE, k_KGE, v_KGE, first in zip(o_BQHE, q_BQHE, k_BKGE, v_BKGE, (3, 50), strict=True):
        expected_QHE = of_sequence(q_QHE, k_KGE[: first + 70], v_KGE[: first + 70], rules)
        torch.testing.assert_close(o_QHE, expected_QHE, rtol=1e-4, atol=1e-5)
    assert max(n_scores) <= 16 * 3  # queries by heads of a group


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("texts", TREES.values(), ids=TREES)
@pytest.mark.parametrize(("kind", "dtype", "tolerance"), KINDS, ids=str)
def test_outputs_and_gradients_of_a_tree_are_those_of_the_formula(kind, texts, rules, dtype, tolerance):
    items = [PackItem(i, 0, np.frombuffer(text.encode(), np.uint8).astype(np.int64)) for i, text in enumerate(texts)]
    packed = pack(items)
    n_rows = len(packed.tokens_T)
    leaves = [heads(n_rows, n, seed).to(dtype).requires_grad_() for n, seed in ((6, 0), (2, 1), (2, 2))]
    do_THE = heads(n_rows, 6, 3).to(dtype)
    unturned = Rope(torch.ones(n_rows, 1, 16), torch.zeros(n_rows, 1, 16))
    out_THE = TreeAttention(ATTENTIONS[kind], packed.segments, torch.device("cpu"))(0, *leaves, unturned, rules)
    out_THE.backward(do_THE)
    seen_TT, distance_TT = torch.zeros(n_rows, n_rows, dtype=torch.bool), torch.zeros(n_rows, n_rows)
    for rows in map(torch.from_numpy, packed.rows):
        for at, row in enumerate(rows):
            seen_TT[row, rows[: at + 1]] = True
            distance_TT[row, rows[: at + 1]] = torch.arange(at, -1, -1).float()
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    plain_THE = formula(*doubles, seen_TT, distance_TT, rules)
    plain_THE.backward(do_THE.double())
    assert (out_THE.double() - plain_THE).norm() <= tolerance * plain_THE.norm()
    for own, plain in zip(leaves, doubles, strict=True):
        assert (own.grad.double() - plain.grad).norm() <= tolerance * plain.grad.norm()


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fixed_attention_gives_a_query_the_same_bits_however_the_queries_are_cut(rules, dtype):
    attention, n_keys = FixedAttention(), 150
    q_KHE, k_KGE, v_KGE = (heads(n_keys, n, n).to(dtype) for n in (6, 2, 2))
    whole = attention.causal(q_KHE, k_KGE, v_KGE, rules)
    cuts = [0, 1, 31, 75, 149, 150]
    parts = [attention.causal(q_KHE[a:b], k_KGE[:b], v_KGE[:b], rules) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)


def test_capped_scores_are_not_rounded_to_bf16_again():
    score_1QK = (200 * heads(40, 30)[..., 0])[None].bfloat16()
    capped_1QK, slope_1QK = cap_scores(score_1QK, 0.25, 50.0)
    bent_1QK = torch.tanh(score_1QK.double() * 0.25 / 50)
    torch.testing.assert_close(capped_1QK.double() * 0.25, 50 * bent_1QK, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope_1QK.double(), 1 - bent_1QK.square(), rtol=1e-5, atol=1e-6)

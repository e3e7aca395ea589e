"""Attention and the head against plain formulas, in both of their forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from loreloop.engine.attention import KEY_BLOCK, FastAttention, FixedAttention, Reach
from loreloop.engine.head import Head, groups_at, rows_of
from loreloop.engine.training.packing import PackItem, pack
from loreloop.engine.training.tree_attention import TreeAttention
from loreloop.formats.load import load_decoder
from loreloop.kernels import attention as kernels
from loreloop.model.linear import FastProducts, TiledProducts
from loreloop.model.lora import NO_ADAPTERS, AdapterView, LoraBatch, LoraGroup, LoraLayout
from loreloop.model.rope import Rope
from loreloop.protocol.training import LoraSpec
from tests.tiny import make_tiny_model

ATTENTIONS = [FastAttention(), FixedAttention()]


def heads(n, n_heads, seed=0, d_head=16):
    return torch.randn(n, n_heads, d_head, generator=torch.Generator().manual_seed(seed))


def plain_attention(q_QHE, k_KGE, v_KGE):
    """softmax(q·k/√E)·v, one query and head at a time."""
    n_queries, n_heads, d_head = q_QHE.shape
    o_QHE = torch.empty_like(q_QHE)
    for i in range(n_queries):
        reach = len(k_KGE) - n_queries + i + 1
        for h in range(n_heads):
            g = h * k_KGE.shape[1] // n_heads
            weight_K = (k_KGE[:reach, g] @ q_QHE[i, h] / math.sqrt(d_head)).softmax(0)
            o_QHE[i, h] = weight_K @ v_KGE[:reach, g]
    return o_QHE


@pytest.mark.parametrize("attention", ATTENTIONS, ids=["fast", "fixed"])
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (5, 5), (1, 130), (20, 77), (70, 200)])
def test_attention_is_the_formula(attention, n_queries, n_keys):
    q_QHE, k_KGE, v_KGE = heads(n_queries, 4), heads(n_keys, 2, 1), heads(n_keys, 2, 2)
    torch.testing.assert_close(attention.causal(q_QHE, k_KGE, v_KGE), plain_attention(q_QHE, k_KGE, v_KGE))


TREES = {
    "short": ["a" * 3],
    "two blocks and a bit": ["a" * 257],
    "roots side by side": ["a" * 100, "b" * 3, "c" * 160],
    "a group": ["a" * 130 + letter * 40 for letter in "bcdefgh"],
    "nested": ["aaaab", "aaaac" + "d" * 150, "aaaac" + "e" * 9 + "f", "aaaac" + "e" * 9 + "g", "aa", "x" * 90],
    "many short answers": ["a" * 20 + letter + "z" * 3 for letter in "bcdefghijklmnopqrstuvw"],
}


@pytest.mark.parametrize("texts", TREES.values(), ids=TREES)
@pytest.mark.parametrize("attention", ATTENTIONS, ids=["fast", "fixed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("n_groups", [2, 6])
def test_gradients_of_a_tree_are_those_of_the_formula(texts, attention, dtype, tolerance, n_groups):
    packed = pack(
        [PackItem(i, 0, np.frombuffer(text.encode(), np.uint8).astype(np.int64)) for i, text in enumerate(texts)]
    )
    n_rows = len(packed.tokens_T)
    leaves = [heads(n_rows, n, seed).to(dtype).requires_grad_() for n, seed in ((6, 0), (n_groups, 1), (n_groups, 2))]
    do_THE = heads(n_rows, 6, 3).to(dtype)
    tree = TreeAttention(attention, packed.segments, torch.device("cpu"))
    unturned = Rope(torch.ones(n_rows, 1, 16), torch.zeros(n_rows, 1, 16))
    tree(0, *leaves, unturned).backward(do_THE)
    seen_TT = torch.zeros(n_rows, n_rows, dtype=torch.bool)
    for rows in map(torch.from_numpy, packed.rows):
        for at, row in enumerate(rows):
            seen_TT[row, rows[: at + 1]] = True
    q_THE, k_TGE, v_TGE = (x.detach().double().requires_grad_() for x in leaves)
    score_HTT = torch.einsum("qhe,khe->hqk", q_THE, k_TGE.repeat_interleave(6 // n_groups, 1)) / 4
    weight_HTT = score_HTT.masked_fill(~seen_TT, -math.inf).softmax(-1)
    torch.einsum("hqk,khe->qhe", weight_HTT, v_TGE.repeat_interleave(6 // n_groups, 1)).backward(do_THE.double())
    for own, plain in zip(leaves, (q_THE, k_TGE, v_TGE), strict=True):
        assert (own.grad.double() - plain.grad).norm() <= tolerance * plain.grad.norm()


@pytest.mark.parametrize("attention", ATTENTIONS, ids=["fast", "fixed"])
def test_single_queries_see_their_own_keys_only(attention):
    n_keys_B = torch.tensor([1, 66, 40])
    q_BHE, k_BKGE, v_BKGE = heads(3, 4), *(heads(3 * 128, 2, seed).view(3, 128, 2, 16) for seed in (1, 2))
    o_B1HE = attention.batched(q_BHE[:, None], k_BKGE, v_BKGE, Reach(n_keys_B - 1, 1, 128))
    for o_1HE, q_HE, k_KGE, v_KGE, n in zip(o_B1HE, q_BHE, k_BKGE, v_BKGE, n_keys_B, strict=True):
        torch.testing.assert_close(o_1HE, plain_attention(q_HE[None], k_KGE[:n], v_KGE[:n]))


@pytest.mark.parametrize("attention", ATTENTIONS, ids=["fast", "fixed"])
def test_a_tree_of_unequal_prompts_and_answers_is_the_formula(attention):
    """Answers that share a call are padded: some queries then stand behind their sequence's last key."""
    rng = np.random.default_rng(0)
    texts = []
    for n_prompt, n_answer in ((125, 3), (125, 3), (100, 4), (100, 2)):
        prompt = np.arange(n_prompt) + n_prompt
        texts.append(np.concatenate((prompt, rng.integers(1000, 2000, n_answer))))
    packed = pack([PackItem(index, 0, text) for index, text in enumerate(texts)])
    n_rows = len(packed.tokens_T)
    q_THE, k_TGE, v_TGE = heads(n_rows, 4), heads(n_rows, 2, 1), heads(n_rows, 2, 2)
    unturned = Rope(torch.ones(n_rows, 1, q_THE.shape[-1]), torch.zeros(n_rows, 1, q_THE.shape[-1]))
    o_THE = TreeAttention(attention, packed.segments, torch.device("cpu"))(0, q_THE, k_TGE, v_TGE, unturned)
    for rows in map(torch.from_numpy, packed.rows):
        torch.testing.assert_close(o_THE[rows], plain_attention(q_THE[rows], k_TGE[rows], v_TGE[rows]))


def unequal(attention, n_keys, dtype):
    """The share of outputs that change a bit when queries come in pieces, or each alone, instead of together."""
    q_KHE, k_KGE, v_KGE = (heads(n_keys, n, n, 64).to(dtype) for n in (9, 3, 3))
    whole = attention.causal(q_KHE, k_KGE, v_KGE)
    cuts = sorted({0, 1, min(30, n_keys), min(31, n_keys), n_keys // 2, n_keys - 1, n_keys})
    parts = [attention.causal(q_KHE[a:b], k_KGE[:b], v_KGE[:b]) for a, b in pairwise(cuts)]
    k_BKGE, v_BKGE = (padded(t).expand(n_keys, -1, -1, -1) for t in (k_KGE, v_KGE))
    single = attention.batched(q_KHE[:, None], k_BKGE, v_BKGE, Reach(torch.arange(n_keys), 1, k_BKGE.shape[1]))
    return max((other != whole).float().mean().item() for other in (torch.cat(parts), single[:, 0]))


@pytest.mark.parametrize("n_keys", [5, 64, 150, 513])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fixed_attention_gives_a_query_the_same_bits_however_the_queries_are_cut(n_keys, dtype):
    assert unequal(FixedAttention(), n_keys, dtype) == 0


@pytest.mark.parametrize("n_keys", [5, 64, 150, 513])
def test_fast_attention_in_bf16_does_too(n_keys):
    """Always by our own kernel, nearly always by the library's."""
    has_kernel = kernels.supports(torch.empty(0, dtype=torch.bfloat16), 64)
    assert unequal(FastAttention(), n_keys, torch.bfloat16) <= (0 if has_kernel else 1e-4)


def padded(x_KGE):
    """With some finite numbers behind, up to whole blocks and one more."""
    n_missing = -len(x_KGE) % KEY_BLOCK + KEY_BLOCK
    return torch.cat((x_KGE, x_KGE[:1].expand(n_missing, -1, -1)))


@pytest.fixture(scope="module", params=[False, True], ids=["fast", "fixed"])
def head(request, tmp_path_factory):
    products = TiledProducts() if request.param else FastProducts()
    folder = make_tiny_model(tmp_path_factory.mktemp("model"))
    decoder = load_decoder(folder, dtype=torch.float32, device=torch.device("cpu"), products=products)
    return Head(decoder, fixed_rows=request.param)


def unembedding(head, rank, rows):
    """A group with an unembedding adapter and a place for its gradient."""
    layout = LoraLayout(head.decoder.spec, LoraSpec(rank, 0, train_attn=False, train_mlp=False))
    flat = 0.1 * torch.randn(layout.size, generator=torch.Generator().manual_seed(rank))
    return LoraGroup(*rows, AdapterView(layout, flat), AdapterView(layout, torch.zeros(layout.size)))


def plain_logp(head, h_ND, targets_NK, groups=()):
    logits_NV = h_ND @ head.decoder.head.weight_OI.T
    for group in groups:
        layer, layout = head.decoder.spec.n_layers, group.weights.layout
        a_RD, b_VR = group.weights.a(layer, "unembed"), group.weights.b(layer, "unembed")[0]
        delta = layout.scale * h_ND[group.start : group.stop] @ a_RD.T @ b_VR.T
        logits_NV = logits_NV.index_add(0, torch.arange(group.start, group.stop), delta)
    return logits_NV.log_softmax(-1).gather(1, targets_NK)


@pytest.mark.parametrize("n_rows", [1, 32, 300])
def test_scores_and_kept_gradients_are_those_of_log_softmax(head, n_rows):
    h_ND, targets_N1 = torch.randn(n_rows, 64, requires_grad=True), torch.randint(0, 512, (n_rows, 1))
    wanted_N = torch.arange(n_rows) % 3 != 0
    scores = head.score(h_ND.detach(), targets_N1, NO_ADAPTERS, wanted_N)
    expected = plain_logp(head, h_ND, targets_N1)
    torch.testing.assert_close(scores.logp_NK, expected)
    grad_ND = torch.autograd.grad(expected.sum(), h_ND)[0]
    torch.testing.assert_close(scores.grad_ND, grad_ND * wanted_N[:, None], rtol=1e-4, atol=1e-5)


def test_the_backward_pass_reaches_hidden_states_and_unembedding_adapters(head):
    h_ND, targets_NK = torch.randn(200, 64, requires_grad=True), torch.randint(0, 512, (200, 3))
    dlogp_NK, groups = torch.randn(200, 3), [unembedding(head, 3, (20, 90)), unembedding(head, 5, (90, 190))]
    dh_ND = head.backward(h_ND.detach(), targets_NK, dlogp_NK, LoraBatch(groups))
    leaves = [group.weights.flat.requires_grad_() for group in groups]
    fresh = [LoraGroup(g.start, g.stop, AdapterView(g.weights.layout, g.weights.flat)) for g in groups]
    total = (plain_logp(head, h_ND, targets_NK, fresh) * dlogp_NK).sum()
    expected = torch.autograd.grad(total, [h_ND, *leaves])
    for own, theirs in zip([dh_ND, *(g.grad.flat for g in groups)], expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-3)


def spans(lora):
    return [(group.start, group.stop) for group in lora.groups]


def test_groups_follow_the_rows_that_are_picked(head):
    lora = LoraBatch([unembedding(head, 1, (2, 5)), unembedding(head, 2, (5, 9)), unembedding(head, 3, (9, 10))])
    assert spans(groups_at(lora, torch.tensor([0, 2, 2, 4, 7, 9]))) == [(1, 4), (4, 5), (5, 6)]
    assert spans(groups_at(lora, torch.tensor([0, 6]))) == [(1, 2)]
    assert spans(rows_of(lora, slice(4, 9))) == [(0, 1), (1, 5)]

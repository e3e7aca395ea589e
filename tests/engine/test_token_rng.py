"""One uniform number a token, the same everywhere; the inverse of the cumulative distribution; the filters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.engine.sampling.token_rng import (
    ALTERNATIVE_STREAM,
    Filter,
    RngKey,
    draw_tokens,
    filtered,
    philox,
    uniforms,
)
from loreloop.engine.softmax import BLOCK, block_sums

# Known answers that are published with Random123: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
SEEDS = st.integers(0, 2**63 - 1)


def words(*texts):
    return np.array([[int(word, 16) for word in text.split()] for text in texts], np.uint64)


def random_rows(n_rows=3, vocab_size=1000, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (n_rows, vocab_size))).float().softmax(-1)


def drawn(p_BV, *uniform):
    return draw_tokens(p_BV, block_sums(p_BV), torch.tensor(uniform, dtype=torch.float64)).tolist()


def test_philox_gives_the_published_numbers():
    counters, keys, results = (words(*column) for column in zip(*KNOWN, strict=True))
    assert (philox(counters, keys) == results).all()


@settings(deadline=None)
@given(st.lists(st.builds(RngKey, SEEDS, st.integers(0, 1023), st.integers(0, 1 << 20)), min_size=1, max_size=20))
def test_a_number_depends_on_its_key_alone(keys):
    together = uniforms(keys)
    assert together.tolist() == [float(uniforms([key])[0]) for key in keys]
    assert ((together >= 0) & (together < 1)).all()


def test_every_part_of_a_key_matters():
    keys = [RngKey(1, 2, 3), RngKey(1 << 40, 2, 3), RngKey(1, 3, 2), RngKey(1, 2, 4), RngKey(2, 2, 3)]
    numbers = uniforms([*keys, RngKey(1, 2, 3, ALTERNATIVE_STREAM)])
    assert len(set(numbers.tolist())) == 6


def test_numbers_are_uniform():
    numbers = uniforms([RngKey(7, i % 10, i // 10) for i in range(20_000)])
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 44  # chi-square, 19 degrees of freedom, p = 0.001


@settings(deadline=None)
@given(st.integers(1, 3 * BLOCK), st.integers(0, 100), st.floats(0, 1, exclude_max=True))
def test_the_cumulative_probability_passes_the_uniform_at_the_token(vocab_size, seed, uniform):
    p_V = random_rows(1, vocab_size, seed)[0]
    (token,) = drawn(p_V[None], uniform)
    below, upto = float(p_V[:token].double().sum()), float(p_V[: token + 1].double().sum())
    wanted = uniform * float(p_V.double().sum())
    assert below - 1e-6 <= wanted <= upto + 1e-6


def test_tokens_without_probability_are_never_drawn():
    p_BV = torch.zeros(4, 2 * BLOCK)
    p_BV[:, [3, BLOCK - 1, BLOCK + 5]] = torch.tensor([0.5, 0.25, 0.25])
    almost_one = 1 - 2.0**-53
    assert drawn(p_BV, 0.0, 0.5, 0.75, almost_one) == [3, BLOCK - 1, BLOCK + 5, BLOCK + 5]


def test_rows_do_not_matter_to_each_other():
    p_BV = random_rows(16)
    uniform = uniforms([RngKey(3, i, 0) for i in range(16)])
    alone = [drawn(p_BV[i : i + 1], uniform[i])[0] for i in range(16)]
    assert drawn(p_BV, *uniform) == alone


def test_draws_follow_the_distribution():
    p_V = torch.tensor([0.05, 0.4, 0.0, 0.3, 0.25])
    uniform = uniforms([RngKey(5, 0, i) for i in range(10_000)])
    counts = np.bincount(drawn(p_V.expand(10_000, -1), *uniform), minlength=5)
    expected = 10_000 * p_V.numpy()
    assert counts[2] == 0
    assert ((counts - expected)[[0, 1, 3, 4]] ** 2 / expected[[0, 1, 3, 4]]).sum() < 16.3  # p = 0.001


@pytest.mark.parametrize("top_k", [1, 5, 999, 1000, 5000])
def test_top_k_keeps_the_most_probable(top_k):
    p_BV = random_rows(1)
    kept = filtered(p_BV, [Filter(top_k)])[0]
    best = p_BV[0].argsort(descending=True)[:top_k]
    assert set(kept.nonzero()[:, 0].tolist()) == set(best.tolist())
    assert torch.equal(kept[best], p_BV[0, best])


@pytest.mark.parametrize("top_p", [0.0, 1e-6, 0.3, 0.9, 0.9999])
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(top_p):
    p_V = random_rows(1)[0]
    kept = filtered(p_V[None], [Filter(top_p=top_p)])[0]
    ordered = p_V.sort(descending=True).values
    n_kept = int((kept > 0).sum())
    assert n_kept >= 1
    assert torch.equal(kept[kept > 0].sort(descending=True).values, ordered[:n_kept])
    assert n_kept == 1 or float(ordered[: n_kept - 1].sum()) < top_p
    assert float(ordered[:n_kept].sum()) >= top_p - 1e-6


def test_top_p_counts_what_top_k_has_left():
    p_BV = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    assert (filtered(p_BV, [Filter(2, 0.55)]) > 0).tolist() == [[True, False, False, False]]  # 0.4 of 0.7 is 0.57


def test_filters_look_at_their_own_row():
    p_BV = random_rows(3)
    kept = filtered(p_BV, [Filter(), Filter(2), Filter(top_p=0.5)])
    assert torch.equal(kept[0], p_BV[0])
    assert int((kept[1] > 0).sum()) == 2
    assert torch.equal(kept[2], filtered(p_BV[2:], [Filter(top_p=0.5)])[0])

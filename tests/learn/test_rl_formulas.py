"""Advantages and corrections beside the formulas written out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.learn.advantages import Overlong, centred, estimated, returns, whitened
from loreloop.learn.corrections import Correction, log_ratios

REWARDS = st.lists(st.floats(-5, 5), min_size=2, max_size=8)
LOGPROBS = st.lists(st.floats(-9, 0), min_size=1, max_size=8)


@given(REWARDS)
def test_a_group_is_centred_and_scaled(rewards: list[float]) -> None:
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    wanted = [0.0] * len(rewards) if max(rewards) - min(rewards) < 1e-8 else [(r - mean) / std for r in rewards]
    np.testing.assert_allclose(centred(rewards), wanted, atol=1e-6)


def test_without_the_division_the_spread_stays() -> None:
    np.testing.assert_allclose(centred([0, 0, 3], scaled=False), [-1, -1, 2])


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1)
)
def test_estimates_over_time_are_the_sum_of_surprises(
    steps: list[tuple[float, float]], gamma: float, lam: float
) -> None:
    earned, values = np.array(steps).T
    behind = [*values[1:], 0.0]
    surprise = [earned[t] + gamma * behind[t] - values[t] for t in range(len(steps))]
    wanted = [sum((gamma * lam) ** k * surprise[t + k] for k in range(len(steps) - t)) for t in range(len(steps))]
    np.testing.assert_allclose(estimated(earned, values, gamma=gamma, lam=lam), wanted, atol=1e-9)
    ahead = [sum(gamma**k * earned[t + k] for k in range(len(steps) - t)) for t in range(len(steps))]
    np.testing.assert_allclose(returns(earned, gamma=gamma), ahead, atol=1e-9)


def test_with_lambda_one_an_estimate_is_what_was_earned_beyond_the_value() -> None:
    earned, values = np.array([0.0, 0.0, 1.0]), np.array([0.5, 0.25, 0.75])
    np.testing.assert_allclose(estimated(earned, values, lam=1.0), returns(earned) - values)


def test_whitening_takes_a_batch_together() -> None:
    rows = whitened([np.array([1.0, 2.0]), np.array([6.0])])
    together = np.concatenate(rows)
    assert together.mean() == pytest.approx(0)
    assert together.std() == pytest.approx(1)
    assert whitened([np.array([2.0, 2.0])])[0].tolist() == [0, 0]
    assert whitened([]) == []


@pytest.mark.parametrize(("n", "penalty"), [(1, 0), (80, 0), (90, -0.5), (100, -1), (120, -1)])
def test_long_answers_are_punished_little_by_little(n: int, penalty: float) -> None:
    assert Overlong(100, 20).penalty(n) == pytest.approx(penalty)


@pytest.mark.parametrize("buffer", [0, 101])
def test_a_buffer_lies_within_the_most(buffer: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 100"):
        Overlong(100, buffer)


@given(LOGPROBS, st.floats(-3, 3))
def test_corrections_are_their_formulas(sampler: list[float], apart: float) -> None:
    trainer = [value + apart * (-1) ** i / (i + 1) for i, value in enumerate(sampler)]
    ratios = [math.exp(t - s) for t, s in zip(trainer, sampler, strict=True)]
    learned = np.ones(len(ratios), bool)

    def weights(correction: Correction) -> np.ndarray:
        return correction.weights(np.array(trainer), np.array(sampler), learned)

    np.testing.assert_allclose(weights(Correction()), [1.0] * len(ratios))
    np.testing.assert_allclose(weights(Correction("truncate")), [min(r, 2.0) for r in ratios])
    np.testing.assert_allclose(weights(Correction("icepop")), [r if 0.5 <= r <= 2.0 else 0.0 for r in ratios])
    mean = math.prod(ratios) ** (1 / len(ratios))
    if abs(mean - 0.99) > 1e-9 and abs(mean - 1.01) > 1e-9:
        np.testing.assert_allclose(weights(Correction("geometric")), [float(0.99 <= mean <= 1.01)] * len(ratios))


def test_the_geometric_mask_looks_at_learned_tokens_alone() -> None:
    trainer, sampler = np.array([-5.0, -1.0]), np.array([0.0, -1.0])
    assert Correction("geometric").weights(trainer, sampler, np.array([False, True])).tolist() == [1, 1]
    assert Correction("geometric").weights(trainer, sampler, np.array([True, True])).tolist() == [0, 0]
    assert Correction("geometric").weights(trainer, sampler, np.array([False, False])).tolist() == [0, 0]


def test_no_ratio_overflows() -> None:
    assert np.isfinite(np.exp(log_ratios(np.array([0.0]), np.array([-1e9])))).all()


def test_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match="low < high"):
        Correction("icepop", 2.0, 0.5)

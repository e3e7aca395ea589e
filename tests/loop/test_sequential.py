"""The statistics of gate and canary: how often they are wrong, and how often they find what is there."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from loreloop.learn.loop.sequential import (
    HALF,
    Trial,
    compare,
    confidence_sequence,
    difference,
    evidence,
    final_look,
    judge,
    paired,
)

TRIALS, LOOKS = 200, 30
USUAL = Trial()


def ended(champion: float, candidate: float, trial: Trial, seed: int) -> tuple[str, int]:
    """One canary of which every look comes behind a hundred episodes; how it ended, and after how many."""
    rng = np.random.default_rng(seed)
    arms: tuple[list[float], list[float]] = ([], [])
    for _ in range(LOOKS):
        for side in rng.integers(2, size=trial.most // LOOKS):
            arms[side].append(float(rng.random() < (candidate, champion)[side]))
        if not (found := judge(*arms, trial)).is_open:
            break
    return found.kind, sum(map(len, arms))


def share(kind: str, champion: float, candidate: float, trial: Trial = USUAL, trials: int = TRIALS) -> float:
    return sum(ended(champion, candidate, trial, seed)[0] == kind for seed in range(trials)) / trials


@pytest.mark.parametrize("rate", [0.3, 0.7])
def test_no_gain_is_rarely_promoted(rate: float) -> None:
    assert share("better", rate, rate) <= 0.05


def test_a_gain_of_five_points_is_found() -> None:
    assert share("better", 0.70, 0.75) >= 0.80


def test_a_worse_candidate_is_rolled_back_and_never_promoted() -> None:
    found = [ended(0.7, 0.4, Trial(), seed) for seed in range(50)]
    assert {kind for kind, _ in found} == {"harmful"}
    assert np.median([n for _, n in found]) < 400


def test_no_difference_is_rarely_called_harm() -> None:
    trial = Trial(harm=0.0, needs_gain=False)
    assert share("harmful", 0.7, 0.7, trial) <= 0.05


def test_where_no_harm_is_enough_an_equal_candidate_is_promoted() -> None:
    trial = Trial(harm=0.1, needs_gain=False)
    assert share("no_harm", 0.8, 0.8, trial, 40) >= 0.9
    assert share("no_harm", 0.8, 0.6, trial, 40) <= 0.05


def test_confidence_sequences_hold_the_mean_at_all_times() -> None:
    missed = 0
    for seed in range(100):
        values = np.random.default_rng(seed).binomial(1, 0.3, 300).astype(float)
        found = [confidence_sequence(values[:n], 0.05) for n in (10, 30, 100, 300)]
        missed += any(not one.low <= 0.3 <= one.high for one in found)
        assert found[-1].high - found[-1].low < 0.25
    assert missed <= 8


def test_capital_is_what_the_formula_says() -> None:
    values = np.array([1.0, 0.0, 1.0])
    from loreloop.learn.loop.sequential import BETS, MOST_BET, PRIOR_VARIANCE

    by_hand = []
    for n in range(4):
        total = 0.0
        for factor, weight in BETS:
            bet, capital = min(MOST_BET / HALF, factor * 0.1 / PRIOR_VARIANCE), weight
            for value in values[:n]:
                capital *= 1 + bet * (value - HALF)
            total += capital
        by_hand.append(total)
    assert evidence(values, HALF, 0.2) == pytest.approx(max(by_hand))


def test_the_expected_capital_under_no_gain_is_one() -> None:
    """Over all courses of three pairs that are as likely as one another, so without any chance."""
    courses = [np.array(course) for course in product((0.0, 0.5, 1.0), repeat=3)]
    from loreloop.learn.loop.sequential import BETS, MOST_BET, PRIOR_VARIANCE

    ends = []
    for course in courses:
        bets = [(min(MOST_BET / HALF, f * 0.1 / PRIOR_VARIANCE), w) for f, w in BETS]
        ends.append(sum(w * np.prod(1 + bet * (course - HALF)) for bet, w in bets))
    assert np.mean(ends) == pytest.approx(1.0)
    # Ville's inequality, over the same courses: the largest capital reaches c with a chance of 1/c at most.
    for bar in (1.2, 1.5, 2.0):
        assert np.mean([evidence(course, HALF, 0.2) >= bar for course in courses]) <= 1 / bar


def test_pairs_are_taken_in_order_and_what_has_no_partner_waits() -> None:
    assert paired([1, 0, 1], [0, 0]).tolist() == [1.0, 0.5]
    assert difference(np.array([]), 0.05).low == -1.0
    assert final_look(np.array([])) == 1.0


def test_the_offline_gate_compares_by_prompt() -> None:
    same = compare([1, 0, 0.5], [1, 0, 0.5], 0.02)
    assert (same.win_rate, same.worse, same.n_ties) == (0.5, False, 3)
    assert compare([0.0] * 40, [1.0] * 40, 0.02).worse
    assert not compare([0.0] * 3, [1.0] * 3, 0.02).worse
    assert compare([1.0] * 40, [0.0] * 40, 0.02).win_rate == 1.0


def test_an_equal_candidate_is_rarely_stopped_by_the_offline_gate() -> None:
    rng = np.random.default_rng(0)
    worse = sum(compare(rng.random(60), rng.random(60), 0.02).worse for _ in range(TRIALS))
    assert worse <= 0.05 * TRIALS

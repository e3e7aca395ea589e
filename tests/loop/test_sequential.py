"""The statistics of canary and gate: how often they are wrong, and how often they find what is there."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from bench.loop_trials import Users, canary, ended, share
from loreloop.learn.loop.clustered import Episode, Estimate, estimate
from loreloop.learn.loop.paired import HALF, bets, compare, confidence_sequence
from loreloop.learn.loop.sequential import BETS, Trial, capital, confidence, evidence, judge, mirrored

TRIALS = 200


def episodes_of(candidate: list[float], champion: list[float], stage: int = 0) -> list[Episode]:
    """Each of a person of its own."""
    arms = [(True, value) for value in candidate] + [(False, value) for value in champion]
    return [Episode(f"{stage} {n}", is_candidate, value, stage) for n, (is_candidate, value) in enumerate(arms)]


def test_no_gain_is_rarely_promoted() -> None:
    assert share("better", Users(0.7, 0.7)) <= 0.05


def test_a_gain_of_five_points_is_found() -> None:
    assert share("better", Users(0.70, 0.75)) >= 0.80


def test_persons_who_are_alike_do_not_promote_by_their_number_of_episodes() -> None:
    """Thirty episodes each, of which two of one person are correlated by a half: as independent episodes they would
    promote a third of all candidates that are no better."""
    assert share("better", Users(0.6, 0.6, episodes=30, alike=0.5)) <= 0.05


def test_a_canary_that_is_widened_while_users_grow_content_is_not_promoted_for_that() -> None:
    """Most of the champion's episodes are from the beginning, most of the candidate's from the end."""
    drifting = Users(0.4, 0.4, drift=0.5, staged=True)
    assert share("better", drifting) <= 0.05
    # Without strata the same episodes show a gain that nobody has had.
    episodes = [canary(drifting, seed, 600) for seed in range(20)]
    pooled = [[Episode(one.person, one.is_candidate, one.value) for one in each] for each in episodes]
    assert np.mean([estimate(each).difference for each in pooled]) > 0.05
    assert abs(np.mean([estimate(each).difference for each in episodes])) < 0.03


def test_a_worse_candidate_is_rolled_back_and_never_promoted() -> None:
    found = [ended(Users(0.7, 0.4), seed, looks=range(50, 3001, 50)) for seed in range(50)]
    assert {kind for kind, _ in found} == {"harmful"}
    assert np.median([n for _, n in found]) < 400


@pytest.mark.parametrize("users", [Users(0.5, 0.5), Users(0.8, 0.8, episodes=10, alike=0.3), Users(0.1, 0.1)])
def test_no_difference_is_rarely_called_harm_however_often_one_looks(users: Users) -> None:
    trial = Trial(harm=0.0, most=200)
    assert sum(ended(users, seed, trial, looks=range(4, 201, 4))[0] == "harmful" for seed in range(100)) <= 5


def test_where_no_harm_is_enough_the_loss_must_be_ruled_out() -> None:
    trial = Trial(harm=0.1, margin=0.1, needs_gain=False)
    assert share("no_harm", Users(0.8, 0.8), trial, 40) >= 0.9
    # A candidate that is worse by just the margin is what must not be promoted.
    assert share("no_harm", Users(0.8, 0.7), trial, 100) <= 0.05


def test_what_is_undecided_at_the_end_is_not_promoted() -> None:
    """Forty episodes cannot rule out a loss of five points, wherever the means are."""
    few = episodes_of([1.0, 1.0, 0.0, 1.0] * 5, [1.0, 1.0, 0.0, 1.0] * 5)
    for needs_gain in (True, False):
        assert judge(few, Trial(most=40, needs_gain=needs_gain)).kind == "no_better"


def test_the_last_look_is_taken_when_the_time_is_over_too() -> None:
    found = episodes_of([1.0, 1.0, 1.0, 0.0] * 15, [1.0, 1.0, 0.0, 0.0] * 15)
    assert judge(found, Trial()).is_open
    assert judge(found, Trial(), is_last=True).kind == "better"
    assert judge(episodes_of([1.0] * 10, [0.0] * 10), Trial(), is_last=True).kind == "no_better", "fewer than the least"
    assert judge([], Trial(), is_last=True).kind == "no_better"


def test_a_person_counts_by_their_mean_and_for_five_episodes_at_most() -> None:
    crowd = episodes_of([0.0] * 10, [0.0] * 10)
    loud = [Episode("loud", True, 1.0)] * 1000
    # The weight of a thousand episodes is 1000/(1 + 999/5), which is nearly 5.
    assert estimate([*crowd, *loud]).difference == pytest.approx(4.98 / 14.98, abs=1e-3)
    assert estimate([*crowd, *loud[:1]]).difference == pytest.approx(1 / 11)
    assert (estimate(loud).variance, estimate(loud).candidate_persons) == (math.inf, 1)


def test_the_variance_is_that_of_means_where_every_person_has_one_episode() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random(400), rng.random(300)
    found = estimate(episodes_of([*one], [*other]))
    assert found.difference == pytest.approx(one.mean() - other.mean())
    plain = one.var() / 400 + other.var() / 300
    # A little wider: by the imagined persons, and since each arm is believed no narrower than both.
    assert plain < found.variance < 1.1 * plain
    assert found.z(found.difference - found.distance(2.5)) == pytest.approx(2.5)


def test_who_is_in_both_stages_is_one_person() -> None:
    """As the same persons in the same arms say the same twice, the second time adds nothing."""
    first = episodes_of([1.0, 0.0] * 50, [1.0, 0.0] * 50)
    again = [Episode(one.person, one.is_candidate, one.value, 1) for one in first]
    others = [Episode(f"other {one.person}", one.is_candidate, one.value, 1) for one in first]
    assert estimate([*first, *again]).variance == pytest.approx(estimate(first).variance, rel=0.05)
    assert estimate([*first, *others]).variance == pytest.approx(estimate(first).variance / 2, rel=0.05)


def test_the_expected_capital_under_no_gain_is_one() -> None:
    """Over a fine grid of all z that there can be, weighted by the normal density."""
    zs = np.linspace(-12, 25, 40_001)
    density = np.exp(-(zs**2) / 2) / math.sqrt(2 * math.pi)
    for variance in (0.1, 0.01, 0.001):
        capitals = np.array([capital(z, variance, 0.05) for z in zs])
        assert (capitals * density).sum() * (zs[1] - zs[0]) == pytest.approx(1.0, abs=1e-3)
    assert sum(part for _, part in BETS) == 1.0
    assert evidence(Estimate(), 0.0, 0.05) == 1.0


def test_the_confidence_sequence_ends_where_the_evidence_does() -> None:
    found = Estimate(difference=0.2, variance=0.001, freedom=300.0)
    interval = confidence(found, 0.05, 0.05)
    assert interval.low < 0.2 < interval.high
    assert evidence(found, interval.low, 0.05) == pytest.approx(2 / 0.05)
    assert evidence(mirrored(found), -interval.high, 0.05) == pytest.approx(2 / 0.05)
    assert confidence(Estimate(), 0.05, 0.05).low == -1.0


def test_confidence_sequences_by_betting_hold_the_mean_at_all_times() -> None:
    missed = 0
    for seed in range(100):
        values = np.random.default_rng(seed).binomial(1, 0.3, 300).astype(float)
        found = [confidence_sequence(values[:n], 0.05) for n in (10, 30, 100, 300)]
        missed += any(not one.low <= 0.3 <= one.high for one in found)
        assert found[-1].high - found[-1].low < 0.25
    assert missed <= 8


def test_bets_are_made_of_the_values_before_them() -> None:
    for course in product((0.0, 1.0), repeat=3):
        whole = bets(np.array(course), 0.05)
        assert bets(np.array([*course[:2], 1 - course[2]]), 0.05).tolist() == whole.tolist()


def test_the_offline_gate_compares_by_prompt() -> None:
    same = compare([1, 0, 0.5], [1, 0, 0.5], 0.02)
    assert (same.win_rate, same.worse, same.n_ties) == (0.5, False, 3)
    assert compare([0.0] * 40, [1.0] * 40, 0.02).worse
    assert not compare([0.0] * 3, [1.0] * 3, 0.02).worse
    assert compare([1.0] * 40, [0.0] * 40, 0.02).win_rate == 1.0
    assert compare([1.0, 0.0] * 40, [0.0, 1.0] * 40, 0.02, least=0.9).worse


def test_an_equal_candidate_is_rarely_stopped_by_the_offline_gate() -> None:
    rng = np.random.default_rng(0)
    found = [compare(rng.random(60), rng.random(60), 0.02, HALF) for _ in range(TRIALS)]
    assert sum(one.worse for one in found) <= 0.05 * TRIALS
    # A rule by the win rate alone stops about half of them.
    assert sum(one.win_rate < HALF for one in found) > 0.3 * TRIALS


def test_a_worse_candidate_is_stopped_by_the_offline_gate() -> None:
    rng = np.random.default_rng(1)
    losing = [compare((rng.random(100) < 0.25).astype(float), [0.5] * 100, 0.02) for _ in range(50)]
    assert sum(one.worse for one in losing) >= 45

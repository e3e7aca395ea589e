"""Constants that are known are found again, and what was held back is told by what was fitted."""

import math
import random

import numpy as np
import pytest

from loreloop.plan.fitting import Observation, error, fit, fitted, halves, not_negative, rates_by_kind
from loreloop.plan.rates import LIKELY, Rates
from loreloop.plan.times import Part

TRUE = Rates(compute=0.31, memory=0.72, links=0.5, layer_seconds=4e-5, message_seconds=3e-5, overlap=0.6)


def observed(n: int, rates: Rates, *, kind: str = "train", noise: float = 0.0, seed: int = 0) -> list[Observation]:
    """Parts of one process with the seconds that they would take."""
    rng = random.Random(seed)
    found = []
    for number in range(n):
        part = Part(products=10 ** rng.uniform(-4, 0), memory=10 ** rng.uniform(-4, 0), layers=rng.randrange(2, 2000))
        seconds = part.seconds(rates) * math.exp(rng.gauss(0, noise))
        found.append(Observation(f"{kind} {number:03}", kind, part, seconds))
    return found


def test_a_part_by_hand() -> None:
    """Of the shorter one, 0.6 goes on beside the longer one."""
    part = Part(products=0.31, memory=0.36, layers=1000)
    assert part.seconds(TRUE) == pytest.approx(1.0 + 0.4 * 0.5 + 0.04)


@pytest.mark.parametrize("overlap", [0.0, 0.6, 1.0])
def test_known_constants_are_found_again(overlap: float) -> None:
    true = Rates(compute=0.31, memory=0.72, links=0.5, layer_seconds=4e-5, message_seconds=3e-5, overlap=overlap)
    found = fitted(observed(24, true))
    assert (found.compute, found.memory) == pytest.approx((0.31, 0.72), rel=1e-6)
    assert found.layer_seconds == pytest.approx(4e-5, rel=1e-4)
    assert found.overlap == overlap


def test_what_nobody_did_says_nothing() -> None:
    found = fitted(observed(12, TRUE))
    assert (found.links, found.message_seconds) == (LIKELY.links, LIKELY.message_seconds)


def test_links_and_messages_are_found_where_somebody_spoke() -> None:
    rng = random.Random(1)
    parts = [
        Part(
            products=rng.random(), memory=0.1, links=rng.random(), layers=rng.randrange(9), messages=rng.random() * 900
        )
        for _ in range(30)
    ]
    found = fitted([Observation(str(n), "train", part, part.seconds(TRUE)) for n, part in enumerate(parts)])
    assert (found.links, found.message_seconds) == pytest.approx((0.5, 3e-5), rel=1e-4)


def test_with_noise_the_half_held_back_is_told_about_as_well_as_the_noise_is_large() -> None:
    noisy = observed(80, TRUE, noise=0.05)
    found = fit(noisy)
    assert 0.02 < found.median_held < 0.06
    assert found.median_fitted < 0.05


def test_a_model_that_is_wrong_is_found_out_by_the_half_held_back() -> None:
    """Seconds that have nothing to do with what was done."""
    rng = random.Random(3)
    senseless = [
        Observation(one.name, one.kind, one.part, 10 ** rng.uniform(-3, 1)) for one in observed(60, TRUE, seed=2)
    ]
    assert fit(senseless).median_held > 0.4


def test_halves_go_by_turns_within_each_kind_and_share_nothing() -> None:
    train, draw = observed(5, TRUE), observed(4, TRUE, kind="draw")
    shuffled = random.Random(0).sample([*train, *draw], 9)
    first, second = halves(shuffled)
    assert [one.name for one in first] == ["draw 000", "draw 002", "train 000", "train 002", "train 004"]
    assert [one.name for one in second] == ["draw 001", "draw 003", "train 001", "train 003"]


def test_each_kind_has_constants_of_its_own() -> None:
    other = Rates(compute=0.1, memory=0.2, links=0.5, layer_seconds=1e-4, message_seconds=3e-5)
    found = rates_by_kind([*observed(20, TRUE), *observed(20, other, kind="draw")])
    assert found["train"].compute == pytest.approx(0.31, rel=1e-6)
    assert found["draw"].compute == pytest.approx(0.1, rel=1e-6)


def test_an_error_is_a_share_of_what_was_measured() -> None:
    assert error(Observation("a", "train", Part(products=0.31), 2.0), TRUE) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(5))
def test_the_solution_is_the_best_of_those_without_negative_numbers(seed: int) -> None:
    """At the best point no move helps that is allowed: the slope is 0 where a number is above 0, and never below it
    elsewhere."""
    rng = np.random.default_rng(seed)
    rows, wanted = rng.normal(size=(20, 4)), rng.normal(size=20)
    found = not_negative(rows, wanted)
    slope = 2 * rows.T @ (rows @ found - wanted)
    assert (found >= 0).all()
    assert slope[found > 0] == pytest.approx(0, abs=1e-9)
    assert (slope[found == 0] > -1e-9).all()

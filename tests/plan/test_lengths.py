"""Laws of lengths keep what they were fitted to, and what is no length is refused with its place."""

import statistics

import pytest

from loreloop.plan.lengths import drawn, drawn_again, of_mean, of_quantiles, parse_lengths, parse_quantiles
from loreloop.protocol.errors import WrongSettings


def test_two_quantiles_are_kept() -> None:
    law = of_quantiles({0.5: 900, 0.95: 3200})
    assert (law.quantile(0.5), law.quantile(0.95)) == pytest.approx((900, 3200))


def test_of_more_quantiles_the_law_is_the_nearest_one() -> None:
    law = of_quantiles({0.1: 300, 0.5: 900, 0.9: 2700})
    assert law.quantile(0.5) == pytest.approx(900)
    assert law.quantile(0.9) == pytest.approx(2700)


def test_a_mean_is_kept_by_what_is_drawn() -> None:
    found = drawn(of_mean(500), 20_000, 1, 1 << 30)
    assert of_mean(500).mean == pytest.approx(500)
    assert statistics.mean(found) == pytest.approx(500, rel=0.02)
    assert sorted(found)[int(0.95 * len(found))] == pytest.approx(1000, rel=0.05)


def test_lengths_are_cut_and_at_least_one() -> None:
    found = drawn(of_mean(3, spread=2.0), 1000, 0, 8)
    assert (min(found), max(found)) == (1, 8)


def test_a_seed_gives_the_same_lengths() -> None:
    assert drawn(of_mean(50), 100, 3, 500) == drawn(of_mean(50), 100, 3, 500) != drawn(of_mean(50), 100, 4, 500)
    assert {*drawn_again([3, 7], 100, 0)} == {3, 7}


def test_lengths_of_a_file_are_read() -> None:
    assert parse_lengths("12 7\n\n100\n") == [12, 7, 100]


@pytest.mark.parametrize(
    ("text", "said"),
    [("12\n0", "line 2"), ("12 x", "'x' on line 1"), ("", "no lengths"), ("9" * 12, "no number"), ("-3", "'-3'")],
    ids=["zero", "word", "empty", "huge", "negative"],
)
def test_what_is_no_length_is_refused(text: str, said: str) -> None:
    with pytest.raises(WrongSettings, match=said):
        parse_lengths(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5", "no quantile"),
        ("1.5=3", "no quantile"),
        ("0.5=nan", "no quantile"),
        ("0.5=900", "two quantiles"),
        ("0.5=900,0.9=100", "must grow"),
    ],
)
def test_what_is_no_law_is_refused(text: str, said: str) -> None:
    with pytest.raises(WrongSettings, match=said):
        of_quantiles(parse_quantiles(text))

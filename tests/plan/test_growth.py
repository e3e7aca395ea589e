"""Growing numbers of devices: the planner's layouts are played, and where nothing more is won is said."""

import pytest

from loreloop.parallel.mesh import parse_mesh
from loreloop.plan import scaling
from loreloop.plan.devices import DEVICES, Group
from loreloop.plan.lengths import drawn, of_mean
from loreloop.plan.memory import Memory, fullest, memories_of, unlike_stages
from loreloop.plan.rates import LIKELY
from loreloop.plan.scaling import (
    Habits,
    Point,
    _candidates,
    _point,
    between_knots,
    check_habits,
    curve,
    rows_of,
    sizes,
    verdict,
)
from loreloop.plan.search import layout_of
from loreloop.plan.simulation import Outcome
from loreloop.plan.times import Machine
from loreloop.plan.wish import Base, Wish
from loreloop.protocol.errors import WrongSettings
from tests.plan.test_plan import K2, QWEN_8B

H200 = DEVICES["H200"]
WISH = Wish(batch=16, group=4, context=1024, response=512, rows=2048)


def test_of_equal_lengths_a_step_by_turns_is_the_planner_s() -> None:
    mesh = parse_mesh("tp=2")
    (point,) = curve(QWEN_8B, WISH, Group(H200, 8), Habits([512], (0,)), mesh)
    step = layout_of(QWEN_8B, WISH, Group(H200, 8), mesh).step
    assert step
    assert point.n_engines == 4
    # Shares of 64 answers over three samplers are uneven, and a revision is handed over.
    assert point.outcome.step_seconds == pytest.approx(step.seconds(LIKELY), rel=0.1)


def test_every_size_has_its_layout_and_more_devices_are_worth_more() -> None:
    habits = Habits(drawn(of_mean(512), 4096, 0, 4096))
    points = curve(QWEN_8B, WISH, Group(H200, 64), habits)
    assert [(point.n, point.staleness) for point in points] == [(n, s) for n in (8, 16, 32, 64) for s in (0, 1, 4)]
    assert all(point.mesh.n_ranks * point.n_engines <= point.n for point in points)
    rates = {(point.n, point.staleness): point.outcome.tokens_a_second for point in points}
    assert rates[64, 1] > rates[8, 1]
    assert rates[32, 1] > rates[32, 0]
    rows = rows_of(points, price=3.0)
    assert rows[0]["over_by_turns"] == 1.0
    assert rows[0]["cost_a_million_tokens"] == pytest.approx(1e6 * 3 * 8 / 3600 / rates[8, 0], abs=0.01)


def test_where_nothing_fits_nothing_is_played() -> None:
    wish = Wish(context=32_768, response=1024, rows=32_768, full=True)
    assert curve(QWEN_8B, wish, Group(DEVICES["A100"], 1), Habits([10])) == []


@pytest.mark.parametrize(
    ("most", "found"), [(4, [4]), (8, [8]), (48, [8, 16, 32, 48]), (1024, [8 << n for n in range(8)])]
)
def test_sizes_double_up_to_all_devices(most: int, found: list[int]) -> None:
    assert sizes(most) == found


def test_a_curve_goes_through_its_knots_and_straight_between() -> None:
    asked: list[int] = []

    def square(n: int) -> float:
        asked.append(n)
        return float(n * n)

    found = between_knots(square, 12)
    assert asked == [1, 2, 4, 8, 12]
    assert [found(n) for n in (0, 1, 2, 3, 4, 6, 8, 12, 99)] == [1, 1, 4, 10, 16, 40, 64, 144, 144]


def point(n: int, staleness: int, rate: float) -> Point:
    outcome = Outcome(
        seconds=1.0,
        n_steps=1,
        n_tokens=round(rate),
        trainer_idle=0.0,
        sampler_idle=0.0,
        staleness_mean=0.0,
        staleness_most=0,
        n_begun=1,
        n_learned=1,
        n_left=0,
    )
    return Point(n, parse_mesh("tp=1"), n, staleness, outcome)


def test_the_verdict_says_where_it_ends_and_what_pays() -> None:
    by_turns, beside = {8: 100, 16: 108, 32: 200, 64: 210}, {8: 105, 16: 200, 32: 400, 64: 800}
    points = [point(n, 0, rate) for n, rate in by_turns.items()]
    words = verdict([*points, *(point(n, 1, rate) for n, rate in beside.items())])
    # What brings little from 8 to 16 brings much from 16 to 32, and nothing more behind it.
    assert words[0].startswith("At staleness 0, it stops scaling at 32 devices")
    assert words[1] == "At staleness 1, it still scales at 64 devices."
    assert words[2].startswith("Learning beside drawing pays from 16 devices on")


@pytest.mark.parametrize(
    ("rates", "last"),
    [
        ([100, 90, 105], 8),  # better than the size before it, and not than the one before that
        ([100, 109, 119], 16),  # twice a little is worth it
        ([100, 50, 120], 32),
        ([100, 50, 109], 8),
        ([100], 8),
    ],
    ids=["a-dip", "by-and-by", "behind-a-dip", "back-again", "one"],
)
def test_it_stops_scaling_where_no_further_size_is_worth_it(rates: list[int], last: int) -> None:
    (words,) = verdict([point(8 << place, 1, rate) for place, rate in enumerate(rates)])
    assert words.startswith("At staleness 1, it s")
    assert f" at {last} devices" in words


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ((200, 105, 300), "pays on 8, 32 devices, and on others not: 10 % more than by turns."),
        ((105, 200, 300), "pays from 16 devices on: 10 % more than by turns."),
        ((105, 105, 105), "nowhere brings 10 % more than by turns."),
    ],
    ids=["with-a-gap", "from-some-on", "nowhere"],
)
def test_beside_pays_on_all_sizes_that_it_is_said_of(beside: tuple[int, ...], said: str) -> None:
    points = [point(8 << place, 0, 100) for place in range(3)]
    words = verdict([*points, *(point(8 << place, 1, rate) for place, rate in enumerate(beside))])
    assert words[-1] == f"Learning beside drawing {said}"


def test_a_token_of_more_answers_takes_longer_however_many_there_are() -> None:
    """Where tasks begin 64 steps early, answers of 65 steps are under way at once."""
    (one,) = _candidates(QWEN_8B, WISH, Group(H200, 8), parse_mesh("tp=2"))
    for n in (8 * WISH.n_samples, 16 * WISH.n_samples, one.drawer.running):
        assert one.token_seconds(n) == pytest.approx(one.drawer.token(WISH, n).seconds(LIKELY), rel=0.01)
    assert one.token_seconds(64 * WISH.n_samples) > 1.2 * one.token_seconds(8 * WISH.n_samples)


def test_a_play_is_long_enough_that_its_beginning_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop begins with the answers of five steps at once, which lie ready when others are waited for later."""
    group, wish = Group(H200, 1024), Wish(batch=64)
    (one,) = _candidates(K2, wish, group, parse_mesh("pp=8,sp=8"))
    habits = Habits(drawn(of_mean(wish.response), 1 << 15, 0, 32_768), (4,))
    found = _point(one, group, habits).outcome
    monkeypatch.setattr(scaling, "FEWEST_STEPS", 120)
    monkeypatch.setattr(scaling, "MOST_STEPS", 120)
    whole = _point(one, group, habits).outcome
    assert (found.n_steps, whole.n_steps) == (16, 120)
    assert found.tokens_a_second == pytest.approx(whole.tokens_a_second, rel=0.04)


def test_answers_that_cannot_be_are_refused() -> None:
    with pytest.raises(WrongSettings, match="--batch 10000 with --group 4"):
        check_habits(QWEN_8B, Wish(batch=10_000, group=4), Habits([1]))
    with pytest.raises(WrongSettings, match="An answer of 40000 tokens"):
        check_habits(QWEN_8B, Wish(), Habits([5, 40_000]))


@pytest.mark.parametrize("mesh", ["tp=2", "pp=2", "pp=8", "pp=16,tp=2"])
@pytest.mark.parametrize("base", [K2, QWEN_8B], ids=["kimi", "qwen"])
def test_of_stages_that_are_alike_one_is_enough(base: Base, mesh: str) -> None:
    laid_out = parse_mesh(mesh)
    every = memories_of(base, WISH, laid_out, H200.n_bytes)
    some = memories_of(base, WISH, laid_out, H200.n_bytes, unlike_stages(base.spec, laid_out.pp))
    assert fullest(some) == fullest(every)

    def slowest(memories: list[Memory]) -> float:
        machines = [Machine(base.spec, laid_out, H200, each, 64) for each in memories]
        return max(machine.training(WISH).seconds(LIKELY) for machine in machines)

    assert slowest(some) == pytest.approx(slowest(every))
    assert len(some) <= min(5, laid_out.pp)

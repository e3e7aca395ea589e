"""What runs have measured is thinned and stays whole: every step is in some row, and means are those of its steps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from loreloop.store import removal, series
from loreloop.store.series import MOST_POINTS, Measured
from loreloop.store.series_tables import RUN_SERIES
from tests.store.place import Place


def measured(first: int, n: int) -> list[Measured]:
    return [Measured(float(step), {"loss": float(step)}) for step in range(first, first + n)]


def test_each_step_is_a_point_at_first(place: Place) -> None:
    run_id = place.run()
    place.write(series.add_all, {run_id: measured(1, 3)})
    place.write(series.add_all, {run_id: measured(4, 2)})
    points = place.read(series.of_run, run_id)
    assert [(point.step, point.n_steps, point.values["loss"]) for point in points] == [
        (step, 1, float(step)) for step in range(1, 6)
    ]
    assert place.read(series.last_of, run_id) == points[-1]


def test_many_steps_take_few_rows_that_stand_for_all(place: Place) -> None:
    run_id, n_steps = place.run(), 5 * MOST_POINTS + 7
    for first in range(1, n_steps + 1, 700):
        place.write(series.add_all, {run_id: measured(first, min(700, n_steps + 1 - first))})
    points = place.read(series.of_run, run_id)
    assert MOST_POINTS / 2 < len(points) <= MOST_POINTS
    expected = 1
    for point in points:
        assert point.step == expected
        # The mean of consecutive numbers is the middle one.
        assert point.values["loss"] == pytest.approx((point.step + point.last_step) / 2)
        expected = point.last_step + 1
    assert expected == n_steps + 1
    assert len({point.n_steps for point in points[:-1]}) == 1


@settings(max_examples=20, deadline=None)
@given(parts=st.lists(st.integers(1, 400), min_size=1, max_size=8))
def test_it_does_not_matter_how_steps_come_in(tmp_path_factory: pytest.TempPathFactory, parts: list[int]) -> None:
    place = Place(tmp_path_factory.mktemp("series"))
    run_id, first = place.run(), 1
    for n in parts:
        place.write(series.add_all, {run_id: measured(first, n)})
        first += n
    points = place.read(series.of_run, run_id)
    assert sum(point.n_steps for point in points) == sum(parts)
    assert sum(point.n_steps * point.values["loss"] for point in points) == pytest.approx(sum(range(1, first)))
    place.store.close()


def test_a_metric_that_some_steps_lack_is_the_mean_of_those_that_have_it(place: Place) -> None:
    run_id = place.run()
    place.write(series.add_all, {run_id: [Measured(1.0, {"loss": 1.0}), *measured(2, MOST_POINTS - 1)]})
    place.write(series.add_all, {run_id: [Measured(1.0, {"loss": 7.0}), Measured(1.0, {"seconds": 3.0})]})
    newest = place.read(series.last_of, run_id)
    assert newest is not None
    assert newest.values == {"loss": 7.0, "seconds": 3.0}


def test_steps_outlive_a_restart_and_go_with_their_run(place: Place) -> None:
    run_id, other = place.run(), place.run(1)
    place.write(series.add_all, {run_id: measured(1, 2), other: measured(1, 1), "unknown": measured(1, 1)})
    place.reopen()
    assert len(place.read(series.of_run, run_id)) == 2
    place.write(removal.remove_run, place.store.segments, run_id, 0.0, force=True)
    place.write(series.add_all, {run_id: measured(3, 1)})
    assert place.read(series.of_run, run_id) == []
    assert place.store.reader.scalar(select(func.count()).select_from(RUN_SERIES)) == 1

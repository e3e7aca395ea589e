"""The page's tables and pictures are what the planner says."""

import re
from pathlib import Path

import pytest

from loreloop.plan.devices import parse_group
from loreloop.plan.search import plan_of
from loreloop.plan.wish import Wish
from tests.plan.pictures import IMAGES, end_of, label
from tests.plan.reports import K2, ORDERS, OTHERS, REPORTS, TENTH, loop, loop_row, order, other, report, tenth

PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()


def cells_of(title: str) -> list[str]:
    (row,) = re.findall(rf"^\| {re.escape(title)} \|(.*)\|$", PAGE, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


def are(cells: list[str], found: list[float | str]) -> bool:
    """Texts are equal, and numbers nearly so."""
    return all(
        cell == each
        if isinstance(each, str)
        else float(cell.replace(",", "")) == pytest.approx(each, rel=0.01, abs=0.06)
        for cell, each in zip(cells, found, strict=True)
    )


@pytest.mark.parametrize("title", REPORTS)
def test_a_report_is_what_the_planner_says(title: str) -> None:
    assert are(cells_of(title), report(title)), report(title)


@pytest.mark.parametrize("title", OTHERS)
def test_a_published_run_is_what_the_planner_says(title: str) -> None:
    _, *computed, unknown = cells_of(title)
    assert are(computed, other(title)), other(title)
    assert unknown


@pytest.mark.parametrize(("n", "gigabytes"), [(192, 113), (160, 139), (152, None), (128, None)])
def test_full_tuning_has_room_where_the_page_says_so(n: int, gigabytes: int | None) -> None:
    fitting = plan_of(K2, Wish(full=True), parse_group(f"{n}xH200")).fitting
    assert (round(fitting[0].memory.total / 1e9) if fitting else None) == gigabytes
    assert "113 GB of each of 192 H200, 128 to 152 lack room, and\npipelines of 5 stages fit 160" in PAGE


def test_seconds_that_are_told_beside_a_table_are_those_of_the_table() -> None:
    drawing, learning = other("GLM-5.1, full tuning (prime-rl)")[3:5]
    assert f"comes out at {learning:.0f} s where 3.7 min" in PAGE
    assert drawing == pytest.approx(300, rel=0.05), "takes the published 5 minutes"


@pytest.mark.parametrize("title", TENTH)
def test_the_tenth_is_what_the_planner_says(title: str) -> None:
    assert [float(cell) for cell in cells_of(title)] == pytest.approx(tenth(title), rel=0.01, abs=0.5)


def test_the_loop_is_what_the_simulation_says() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d) \|(.*)\|$", PAGE, re.MULTILINE)
    found = [[devices, staleness, *(cell.strip() for cell in rest.split("|"))] for devices, staleness, rest in rows]
    points = loop()
    assert len(found) == len(points) == 24
    for row, point in zip(found, points, strict=True):
        assert are(row, loop_row(point)), loop_row(point)


@pytest.mark.parametrize("title", ORDERS)
def test_what_a_step_waits_for_is_what_the_simulation_says(title: str) -> None:
    assert are(cells_of(title), order(title)), order(title)


def test_the_pictures_are_of_these_figures() -> None:
    bars, lines = ((IMAGES / f"plan-{name}.svg").read_text() for name in ("tenth", "loop"))
    assert [title for title in TENTH if f">{label(title)}<" not in bars] == []
    assert [one for one in (0, 1, 4) if f">{end_of(loop(), one)}<" not in lines] == []
    assert "plan-tenth.svg" in PAGE
    assert "plan-loop.svg" in PAGE

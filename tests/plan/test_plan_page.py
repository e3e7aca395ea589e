"""The page's tables and pictures are what the planner says."""

import re
from pathlib import Path

import pytest

from tests.plan.pictures import IMAGES, end_of, label
from tests.plan.reports import ORDERS, OTHERS, REPORTS, TENTH, loop, loop_row, order, other, report, tenth

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

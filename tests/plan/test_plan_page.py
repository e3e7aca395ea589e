"""The page's tables are what the planner says."""

import re
from pathlib import Path

import pytest

from tests.plan.reports import REPORTS, TENTH, report, tenth

PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()


def cells_of(title: str) -> list[str]:
    (row,) = re.findall(rf"^\| {re.escape(title)} \|(.*)\|$", PAGE, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.parametrize("title", REPORTS)
def test_a_report_is_what_the_planner_says(title: str) -> None:
    for cell, found in zip(cells_of(title), report(title), strict=True):
        assert cell == found if isinstance(found, str) else float(cell) == pytest.approx(found, rel=0.01, abs=0.06)


@pytest.mark.parametrize("title", TENTH)
def test_the_tenth_is_what_the_planner_says(title: str) -> None:
    assert [float(cell) for cell in cells_of(title)] == pytest.approx(tenth(title), rel=0.01, abs=0.5)
    share = round(100 * tenth(title)[-1] / tenth("full tuning")[-1])
    # The picture's line begins as the row does.
    (drawn,) = re.findall(rf"^{re.escape(title.split(', each')[0])} +base .* (\d+) %$", PAGE, re.MULTILINE)
    assert int(drawn) == share

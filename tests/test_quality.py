"""The page on quality lists the rows that are measured, and says which of them miss."""

import ast
import re
from pathlib import Path

from tests.quality import Row, annotated_percent, lengths, n_calls, n_comment_lines, rows, share_below

PAGE = (Path(__file__).parent.parent / "docs/quality.md").read_text()
MEASURED = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \| (passes|misses) \|$", PAGE, re.M)
JUDGED = re.findall(r"^\| [^|]+ \| ([012–]) \| [^|]+ \|$", PAGE, re.M)


def test_the_page_says_which_rows_miss() -> None:
    assert [(row.name, "passes" if row.passes else "misses") for row in rows()] == MEASURED


def test_the_sum_is_that_of_the_judged_rows() -> None:
    applying = [int(score) for score in JUDGED if score != "–"]
    assert len(JUDGED) == 22
    assert f"**{sum(applying)} of {2 * len(applying)}**" in PAGE


def test_a_row_passes_between_its_bounds() -> None:
    assert [Row("x", value, 10, least=5).passes for value in (4.9, 5, 10, 10.1)] == [False, True, True, False]


def test_things_are_counted() -> None:
    text = "def f(self, a: int, b):  # one\n    # two\n    return getattr(a, '#')\n"
    tree = ast.parse(text)
    assert n_comment_lines(text) == 2
    assert lengths([tree]) == [3]
    assert annotated_percent([tree]) == 50
    assert n_calls([tree], "getattr", "hasattr") == 1
    assert share_below([*range(10)], 0.9) == 9

"""The glossary names files that exist, and every term once."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "glossary.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([^`|]+)` \|$", PAGE, re.M)


def test_the_glossary_is_read() -> None:
    assert len(ROWS) == len([line for line in PAGE.splitlines() if line.startswith("| ") and "`" in line]) > 30


def test_every_term_stands_once() -> None:
    assert [term for term, n in Counter(term for term, _, _ in ROWS).items() if n > 1] == []


@pytest.mark.parametrize(("term", "meaning", "path"), ROWS, ids=[row[0] for row in ROWS])
def test_a_term_says_where_it_is_defined(term: str, meaning: str, path: str) -> None:
    assert (ROOT / "src" / "loreloop" / path).is_file(), f"{term} names {path}"
    assert meaning.endswith((".", ".)")), f"the meaning of {term} is a sentence"

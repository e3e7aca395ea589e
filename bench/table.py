"""`python -m bench.table`: the results as the table of docs/benchmarks.md, between its two marks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.rows import ROWS

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- rows: written by python -m bench.table -->", "<!-- end of rows -->"


def table() -> str:
    lines = ["| row | figure | measured | wanted |", "|---|---|---|---|"]
    for name in ROWS:
        file = RESULTS / f"{name}.json"
        for figure in json.loads(file.read_text())["figures"] if file.exists() else []:
            lines.append(
                f"| `{name}` | {figure['name']} | {figure['value']:.4g} {figure['unit']} | {_wanted(figure)} |"
            )
    return "\n".join(lines)


def _wanted(figure: dict[str, Any]) -> str:
    if "met" not in figure:
        return ""
    bound = f"≥ {figure['at_least']:g}" if "at_least" in figure else f"≤ {figure['at_most']:.4g}"
    return bound if figure["met"] else f"{bound}: **not met**"


def main() -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()

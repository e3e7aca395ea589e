"""Prints rows as a table for people, or as JSON for programs: times and sizes are short in one, exact in the other."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
LIMIT = click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="How many, at most.")
UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))
SIZES = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Moment:
    """Seconds since the epoch: "3 minutes ago" in a table, ISO 8601 in JSON."""

    seconds: float

    @property
    def exact(self) -> str:
        """The time as ISO 8601 in UTC, to the second."""
        return datetime.fromtimestamp(self.seconds, UTC).isoformat(timespec="seconds")

    def __str__(self) -> str:
        return distance(self.seconds - time.time())


@dataclass(frozen=True)
class Size:
    """Bytes: "27.9 MB" in a table, the number in JSON."""

    exact: int

    def __str__(self) -> str:
        value, unit = float(self.exact), 0
        # From 999.5 on, three digits would round to 1000 of the smaller unit.
        while value >= 999.5 and unit < len(SIZES) - 1:
            value, unit = value / 1000, unit + 1
        return f"{value:.3g} {SIZES[unit]}" if unit else f"{self.exact} B"


def distance(seconds: float) -> str:
    """How far away something is, in the largest unit that fits: negative is the past."""
    size = abs(seconds)
    for name, length in UNITS:
        if size >= length:
            n = int(size // length)
            words = f"{n} {name}{'s' if n > 1 else ''}"
            return f"in {words}" if seconds > 0 else f"{words} ago"
    return "within a minute" if seconds > 0 else "just now"


def show(rows: Sequence[dict[str, Any]], as_json: bool, *, empty: str = "None.") -> None:
    """`empty` is told to people, beside the output, where there are no rows: what there is not, and what makes one."""
    if as_json:
        click.echo(json.dumps([{name: exactly(value) for name, value in row.items()} for row in rows]))
        return
    if not rows:
        click.echo(empty, err=True)
        return
    # Rows may lack fields; the columns are all that occur, in the order in which they do first.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def exactly(value: Any) -> Any:
    """The value as JSON shall hold it: exact, and without words."""
    return value.exact if isinstance(value, Moment | Size) else value


def cell(value: Any) -> str:
    """None is an empty cell; numbers are grouped by thousands, a text of several lines becomes one and cannot do
    anything to the terminal."""
    match value:
        case None:
            return ""
        # Before int, since True is one.
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case _:
            # A line of its own would look like a row.
            return harmless(" ".join(str(value).splitlines()))


def harmless(text: str) -> str:
    """A text of somebody else's for a terminal: what is no letter, sign or space is written out, so that a name cannot
    move the cursor, change colours, or turn what stands behind it around."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)

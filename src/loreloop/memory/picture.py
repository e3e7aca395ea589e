"""The memory as two bars: how much of the budget is kept whole, condensed, written by a model, pinned or free; and
what became of each turn of the conversation, dropped ones included.

In a terminal each kind has a colour and a sign of its own, so that it can be read without colours too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from xml.sax.saxutils import escape

from loreloop.memory.state import MemoryState, Segment


@dataclass(frozen=True)
class Kind:
    """`colour` is one of a terminal's eight."""

    name: str
    sign: str
    colour: str
    hexadecimal: str


PINNED = Kind("pinned", "■", "magenta", "#8e44ad")
KEPT = Kind("kept", "█", "green", "#2e8b57")
CONDENSED = Kind("condensed", "▓", "yellow", "#d4a017")
WRITTEN = Kind("written", "▒", "cyan", "#2980b9")
FREE = Kind("free", "·", "white", "#dddddd")
DROPPED = Kind("dropped", "-", "red", "#c0392b")
KINDS = (KEPT, CONDENSED, WRITTEN, PINNED, FREE)
FATES = (KEPT, CONDENSED, WRITTEN, PINNED, DROPPED)

BAR_WIDTH, BAR_HEIGHT, LINE = 960, 48, 22  # of the SVG, in pixels
CELLS = 480  # of the SVG's bar of turns


@dataclass(frozen=True)
class Run:
    """Neighbouring cells of one kind in a terminal's bar."""

    kind: Kind
    cells: int


def kind_of(segment: Segment) -> Kind:
    """How the bar shows a segment: a pin counts before its form, and an excerpt as condensed."""
    if segment.pinned:
        return PINNED
    return {"whole": KEPT, "written": WRITTEN}.get(segment.form, CONDENSED)


def runs(state: MemoryState, width: int) -> list[Run]:
    """`width` cells in all. A cell shows what stands at its middle, so that rounding never shifts what follows."""
    ends = list(accumulate(segment.tokens for segment in state.segments))
    found: list[Run] = []
    position = 0
    for cell in range(width):
        middle = (cell + 0.5) * state.budget / width
        while position < len(ends) and ends[position] <= middle:
            position += 1
        kind = kind_of(state.segments[position]) if position < len(ends) else FREE
        add_cell(found, kind)
    return found


def add_cell(runs: list[Run], kind: Kind) -> None:
    """Neighbours are merged, so that a terminal is sent one colour code for each run."""
    if runs and runs[-1].kind is kind:
        runs[-1] = Run(kind, runs[-1].cells + 1)
    else:
        runs.append(Run(kind, 1))


def fates(state: MemoryState) -> list[Kind]:
    """What became of each turn, by its number; one that no segment was made from, or is left of, is dropped."""
    found = [DROPPED] * state.n_turns
    for segment in state.segments:
        for turn in segment.turns:
            found[turn] = kind_of(segment)
    return found


def turn_runs(state: MemoryState, width: int) -> list[Run]:
    """At most `width` cells for the turns, the oldest first. A cell shows what most of its turns have become."""
    every = fates(state)
    width = min(width, len(every))
    found: list[Run] = []
    for cell in range(width):
        of_cell = Counter(every[cell * len(every) // width : (cell + 1) * len(every) // width])
        add_cell(found, max(FATES, key=lambda kind: of_cell[kind]))
    return found


def turns_by_fate(state: MemoryState) -> dict[str, int]:
    """How many turns there are of every fate by its name; they sum to the turns seen."""
    counted = Counter(fates(state))
    return {kind.name: counted[kind] for kind in FATES}


def tokens_by_kind(state: MemoryState) -> dict[str, int]:
    """The tokens of every kind by its name, the free ones among them; they sum to the budget."""
    sums = {kind.name: 0 for kind in KINDS}
    for segment in state.segments:
        sums[kind_of(segment).name] += segment.tokens
    # Set last, since no segment is of this kind.
    sums[FREE.name] = state.budget - state.tokens
    return sums


def printable(text: str) -> str:
    """On one line and without control characters: text of a conversation must not steer a terminal or break XML."""
    return "".join(c if c.isprintable() else " " for c in text)


def svg(state: MemoryState) -> str:
    """A picture by itself, without scripts or links; pointing at a segment shows its text."""
    scale = BAR_WIDTH / state.budget
    parts, left = [], 0
    for segment in state.segments:
        parts.append(rectangle(left * scale, segment.tokens * scale, kind_of(segment), tooltip(segment)))
        left += segment.tokens
    parts.append(rectangle(left * scale, (state.budget - left) * scale, FREE, f"free: {state.budget - left} tokens"))
    second = BAR_HEIGHT + LINE * (len(KINDS) + 1)
    below = turn_runs(state, CELLS)
    n_cells, position = sum(run.cells for run in below), 0
    for run in below:
        left_edge, width = (BAR_WIDTH * cells / n_cells for cells in (position, run.cells))
        parts.append(rectangle(left_edge, width, run.kind, f"{run.kind.name}: most turns here", y=second))
        position += run.cells
    height = second + BAR_HEIGHT + LINE * (len(FATES) + 1)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {BAR_WIDTH} {height}" '
        'font-family="sans-serif" font-size="14">'
    )
    first = legend(tokens_by_kind(state), KINDS, "tokens", BAR_HEIGHT)
    return "\n".join(
        [opening, *parts, *first, *legend(turns_by_fate(state), FATES, "turns", second + BAR_HEIGHT), "</svg>\n"]
    )


def tooltip(segment: Segment) -> str:
    """What pointing at a segment in the SVG shows: kind, tokens, turns and text."""
    turns = ", ".join(map(str, segment.turns))
    return f"{kind_of(segment).name}, {segment.tokens} tokens, turn {turns}: {segment.head}{segment.text}"


def rectangle(x: float, width: float, kind: Kind, title: str, y: int = 0) -> str:
    """An SVG element of a bar, `x`, `y` and `width` in pixels; the title is escaped here."""
    return (
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{BAR_HEIGHT}" fill="{kind.hexadecimal}" '
        f'stroke="white" stroke-width="0.5"><title>{escape(printable(title))}</title></rect>'
    )


def legend(numbers: dict[str, int], kinds: Sequence[Kind], unit: str, top: int) -> list[str]:
    """SVG elements below a bar that ends at `top`, a square and a line of text for each kind."""
    lines = []
    for number, kind in enumerate(kinds):
        y = top + LINE * (number + 1)
        lines.append(f'<rect x="0" y="{y - 12}" width="12" height="12" fill="{kind.hexadecimal}"/>')
        lines.append(f'<text x="20" y="{y}">{kind.name}: {numbers[kind.name]} {unit}</text>')
    return lines

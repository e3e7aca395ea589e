"""A page about a loop: satisfaction by revision over time, the guards of each candidate, and every decision.

One HTML file with its plots as SVG inside: it loads nothing, and can be mailed. Pure functions but for reading the
feeds.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean
from types import MappingProxyType
from typing import Any

from loreloop.learn.loop.canary import score_of
from loreloop.learn.loop.collecting import newest_of, said_of
from loreloop.learn.loop.config import LoopConfig
from loreloop.learn.loop.server import Server
from loreloop.learn.loop.state import Decision, LoopFolder
from loreloop.protocol.episodes import Turn
from loreloop.protocol.feedback import BUILT_IN, Feedback, Metric

WIDTH, HEIGHT, LEFT, BOTTOM = 860, 260, 50, 40
COLOURS = ("#4878a8", "#d08030", "#509050", "#b05060", "#8060a0", "#607080", "#a09030", "#309090")
MOST_BINS = 24
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3em .6em;border-bottom:1px solid #ddd;"
    "vertical-align:top}small{color:#666}svg{max-width:100%}"
)


@dataclass(frozen=True)
class Judged:
    """One turn that was judged: when it was answered, by which revision, and how content its user was, in 0 … 1."""

    at: float
    revision: str
    satisfaction: float


@dataclass(frozen=True)
class Point:
    """A mean over part of the time: where it stands, what it is, and of how many."""

    at: float
    value: float
    n: int


def page_of(
    config: LoopConfig, folder: LoopFolder, server: Server, metrics: Mapping[str, Metric] = MappingProxyType(BUILT_IN)
) -> str:
    """The whole page; `metrics` are those of the deployment, with those that every one has."""
    judged = judged_of(server.turns(), server.feedback(), config, metrics)
    state, decisions = folder.load(), folder.decisions()
    names = names_of(decisions, [one.revision for one in judged])
    why = folder.why()["sentence"]
    stands = f"Cycle {state.cycle}, stage {state.stage}. " if state else ""
    parts = [
        f"<h1>The loop of {escape(config.deployment)}</h1>",
        f"<p>{escape(stands + why)}</p>",
        "<h2>Satisfaction by revision</h2>",
        "<p>Means of what users said of answers; a circle's size is how many answers it stands for.</p>",
        plot(series_of(judged), names),
        "<h2>Revisions</h2>",
        _table(("revision", "answers judged", "satisfaction"), _revisions(judged, names)),
        "<h2>Guards</h2>",
        _guards(decisions),
        "<h2>Decisions</h2>",
        _table(("when", "cycle", "stage", "verdict", "why"), [_row(one) for one in decisions]),
    ]
    head = f"<meta charset='utf-8'><title>{escape(config.deployment)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def judged_of(
    turns: Iterable[Turn], statements: Iterable[Feedback], config: LoopConfig, metrics: Mapping[str, Metric]
) -> list[Judged]:
    """Every turn that somebody was content or discontent with, in the order of their times."""
    by_id = {turn.id: turn for turn in newest_of(turns).values() if not turn.side}
    found = []
    for turn_id, said in said_of(by_id, statements).items():
        values = [value for one in said if (value := score_of(one, config.canary, metrics)) is not None]
        if values:
            turn = by_id[turn_id]
            found.append(Judged(turn.created, turn.revision or turn.base_model, mean(values)))
    return sorted(found, key=lambda one: one.at)


def names_of(decisions: Sequence[Decision], revisions: Iterable[str]) -> dict[str, str]:
    """A short name for each revision: the candidate of which cycle it is, or its own."""
    cycles = {one.candidate: f"candidate {one.cycle}" for one in decisions if one.candidate}
    return {one: cycles.get(one) or one.rsplit("/", 1)[-1] for one in revisions}


def series_of(judged: Sequence[Judged]) -> dict[str, list[Point]]:
    """Each revision's satisfaction over time, in as many bins as the time is divided into."""
    if not judged:
        return {}
    first, last = judged[0].at, judged[-1].at
    width = max((last - first) / MOST_BINS, 1e-9)
    bins: dict[str, dict[int, list[Judged]]] = defaultdict(lambda: defaultdict(list))
    for one in judged:
        bins[one.revision][min(MOST_BINS - 1, int((one.at - first) / width))].append(one)
    return {
        revision: [
            Point(mean(one.at for one in each), mean(one.satisfaction for one in each), len(each))
            for _, each in sorted(own.items())
        ]
        for revision, own in bins.items()
    }


def plot(series: Mapping[str, Sequence[Point]], names: Mapping[str, str]) -> str:
    """The series as one picture."""
    points = [point for each in series.values() for point in each]
    if not points:
        return "<p>Nothing was judged yet.</p>"
    first, last = min(point.at for point in points), max(point.at for point in points)
    span = max(last - first, 1e-9)
    across = lambda at: LEFT + (WIDTH - LEFT - 190) * (at - first) / span  # noqa: E731
    down = lambda value: 10 + (HEIGHT - BOTTOM - 10) * (1 - value)  # noqa: E731
    drawn = [_axis(down, first, last)]
    for number, (revision, own) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{across(point.at):.1f},{down(point.value):.1f}" for point in own)
        drawn.append(f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='2'/>")
        for point in own:
            radius = min(7.0, 2.0 + point.n**0.5 / 2)
            title = f"<title>{point.value:.2f} of {point.n}</title>"
            drawn.append(
                f"<circle cx='{across(point.at):.1f}' cy='{down(point.value):.1f}' r='{radius:.1f}' fill='{colour}'>"
                f"{title}</circle>"
            )
        y = 20 + 18 * number
        drawn.append(f"<rect x='{WIDTH - 175}' y='{y - 9}' width='10' height='10' fill='{colour}'/>")
        drawn.append(
            f"<text x='{WIDTH - 160}' y='{y}' font-size='12'>{escape(names.get(revision, revision)[:26])}</text>"
        )
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' font-family='sans-serif'>{''.join(drawn)}</svg>"


def _axis(down: Any, first: float, last: float) -> str:
    lines = [
        f"<line x1='{LEFT}' x2='{WIDTH - 190}' y1='{down(value):.1f}' y2='{down(value):.1f}' stroke='#ddd'/>"
        f"<text x='{LEFT - 8}' y='{down(value) + 4:.1f}' font-size='12' text-anchor='end'>{value:g}</text>"
        for value in (0, 0.25, 0.5, 0.75, 1)
    ]
    ends = [(LEFT, first, "start"), (WIDTH - 190, last, "end")]
    lines += [
        f"<text x='{x}' y='{HEIGHT - 15}' font-size='12' text-anchor='{side}'>{_moment(at)}</text>"
        for x, at, side in ends
    ]
    return "".join(lines)


def _revisions(judged: Sequence[Judged], names: Mapping[str, str]) -> list[list[str]]:
    own: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        own[one.revision].append(one.satisfaction)
    return [[escape(names[revision]), str(len(values)), f"{mean(values):.2f}"] for revision, values in own.items()]


def _guards(decisions: Sequence[Decision]) -> str:
    """What the gate has measured of each candidate, side by side."""
    gates = [one for one in decisions if one.stage == "gate"]
    if not gates:
        return "<p>No candidate has stood before the gate yet.</p>"
    measures = list(dict.fromkeys(name for one in gates for name in one.numbers))
    rows = [[escape(name), *(_number(one.numbers.get(name)) for one in gates)] for name in measures]
    return _table(("measure", *(f"candidate {one.cycle}" for one in gates)), rows)


def _row(one: Decision) -> list[str]:
    numbers = ", ".join(f"{name} {_number(value)}" for name, value in one.numbers.items())
    who = f" <small>for {escape(one.person)}</small>" if one.person else ""
    return [
        _moment(one.at),
        str(one.cycle),
        escape(one.stage) + who,
        escape(one.verdict),
        f"{escape(one.sentence)}<br><small>{escape(numbers)}</small>",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else escape(str(value))


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))

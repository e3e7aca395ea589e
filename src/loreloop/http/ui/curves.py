"""Curves as the points of an SVG, and the ticks beside them. Pure: knows neither runs nor pages.

Positions are in units of the picture, from its left upper corner.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 64, 8, 10, 24  # room for the ticks
LARGEST = sys.float_info.max
MOST_DRAWN = 600  # points of a curve, about one for each dot of a screen


class Measure(NamedTuple):
    """A value at a step."""

    step: int
    value: float


class Curve(msgspec.Struct, frozen=True):
    """One line; `place` is its number in the picture, by which it gets its colour."""

    name: str
    points: str
    place: int
    newest: float


class Tick(msgspec.Struct, frozen=True):
    """A line across the picture, or a mark below it, with its number."""

    at: float
    label: str


class Picture(msgspec.Struct, frozen=True):
    """All curves of one metric."""

    metric: str
    curves: tuple[Curve, ...]
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT


def picture(metric: str, series: Mapping[str, Sequence[Measure]]) -> Picture | None:
    """The picture of a metric with one curve for each name; None where nothing was measured."""
    drawn = {name: thinned(finite(points)) for name, points in series.items()}
    everything = [point for points in drawn.values() for point in points]
    if not everything:
        return None
    low, high = _span([point.value for point in everything])
    first, last = min(point.step for point in everything), max(point.step for point in everything)

    def at(point: Measure) -> str:
        return f"{_x(point.step, first, last):.1f},{_y(point.value, low, high):.1f}"

    curves = tuple(
        Curve(name, " ".join(map(at, points)), place, points[-1].value)
        for place, (name, points) in enumerate(drawn.items())
        if points
    )
    rows = tuple(Tick(_y(value, low, high), f"{value:.4g}") for value in (low, low / 2 + high / 2, high))
    steps = sorted({first, (first + last) // 2, last})
    columns = tuple(Tick(_x(step, first, last), str(step)) for step in steps)
    return Picture(metric=metric, curves=curves, rows=rows, columns=columns)


def finite(points: Sequence[Measure]) -> list[Measure]:
    """Without what cannot be drawn."""
    return [point for point in points if math.isfinite(point.value)]


def thinned(points: Sequence[Measure]) -> list[Measure]:
    """At most as many points as can be told apart, the first and the last among them."""
    if len(points) <= MOST_DRAWN:
        return list(points)
    stride = (len(points) - 1) / (MOST_DRAWN - 1)
    return [points[round(place * stride)] for place in range(MOST_DRAWN)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        # A level line is drawn in the middle, between two numbers that differ.
        apart = min(abs(low) / 2 or 1.0, LARGEST - abs(low))
        return low - apart, high + apart
    return low, high


def _x(step: int, first: int, last: int) -> float:
    share = (step - first) / (last - first) if last > first else 0.5
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    # Halved first, since the distance of two large numbers may be none.
    apart = high / 2 - low / 2
    share = (value / 2 - low / 2) / apart if apart else 0.5
    return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

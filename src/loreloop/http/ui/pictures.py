"""Series of steps as pictures with the words that belong to them: of one run, of several over one another, of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loreloop.http.ui.curves import Measure, picture
from loreloop.http.ui.metric_words import in_order, words_of
from loreloop.store.series import Point

Series = dict[str, list[Measure]]
MOST_PICTURES = 40  # on one page; a job may report any number of metrics


def of_points(points: Sequence[Point]) -> Series:
    """Points by metric; each stands at the last step that it is of."""
    found: Series = {}
    for point in points:
        for name, value in point.values.items():
            found.setdefault(name, []).append(Measure(point.last_step, value))
    return found


def pictures(series: Mapping[str, Series]) -> list[dict[str, Any]]:
    """A picture for each metric that anybody has measured, with a curve for each name."""
    metrics = in_order({metric for one in series.values() for metric in one})[:MOST_PICTURES]
    made = []
    for metric in metrics:
        found = picture(metric, {name: one.get(metric, ()) for name, one in series.items()})
        if found is not None:
            words = words_of(metric)
            made.append({"picture": found, "title": words.title, "about": words.about})
    return made

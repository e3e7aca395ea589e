"""Series of steps as pictures with the words that belong to them: of one run, of several over one another, of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loreloop.http.ui.curves import Measure, picture
from loreloop.http.ui.metric_words import in_order, words_of
from loreloop.protocol.jobs import Metrics
from loreloop.store.series import Point

Series = dict[str, list[Measure]]
MOST_PICTURES = 40  # on one page; a job may report any number of metrics


def of_points(points: Sequence[Point]) -> Series:
    """A run's points by metric; each stands at the last step that it is of."""
    return _by_metric([(point.last_step, point.values) for point in points])


def of_steps(steps: Sequence[tuple[int, Metrics]]) -> Series:
    """A job's metrics by name."""
    return _by_metric(steps)


def _by_metric(steps: Sequence[tuple[int, Mapping[str, float]]]) -> Series:
    found: Series = {}
    for step, values in steps:
        for name, value in values.items():
            found.setdefault(name, []).append(Measure(step, value))
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

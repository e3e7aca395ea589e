"""What a training run has measured at each of its steps, thinned as it grows: few rows stand for any number of steps.

A row stands for one step at first. When a run has too many rows, neighbours become one row with their mean, and later
steps are gathered into rows as long as those. So the whole of a run can always be drawn, and a row costs one write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, Select, delete, insert, select

from loreloop.store.schema import RUNS
from loreloop.store.series_tables import RUN_SERIES

MOST_POINTS = 1000  # of a run; more than any screen shows
AT = RUN_SERIES.c


class Point(msgspec.Struct, frozen=True):
    """The mean of what was measured over `n_steps` steps from `step` on; `created` is when the last of them ended, in
    seconds since the epoch."""

    step: int
    n_steps: int
    created: float
    values: dict[str, float]

    @property
    def last_step(self) -> int:
        """The last step that it stands for."""
        return self.step + self.n_steps - 1


class Measured(NamedTuple):
    """What one step has measured, and when it ended."""

    created: float
    values: dict[str, float]


def add_all(connection: Connection, measured: Mapping[str, Sequence[Measured]]) -> None:
    """Appends steps to the series of runs, in their order. What belongs to a run that is deleted by now goes
    nowhere."""
    known = set(connection.scalars(select(RUNS.c.id).where(RUNS.c.id.in_(measured))))
    for run_id in known:
        _extend(connection, run_id, measured[run_id])
        _thin(connection, run_id)


def of_run(connection: Connection, run_id: str) -> list[Point]:
    """The whole series of a run in its order."""
    return [_point(row) for row in connection.execute(select(RUN_SERIES).where(AT.run_id == run_id).order_by(AT.step))]


def last_of(connection: Connection, run_id: str) -> Point | None:
    """The newest point of a run; None where nothing was measured yet."""
    row = connection.execute(_newest_first(run_id).limit(1)).first()
    return _point(row) if row else None


def forget(connection: Connection, run_id: str) -> None:
    """Takes the series of a run away."""
    connection.execute(delete(RUN_SERIES).where(AT.run_id == run_id))


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` of them: neighbours are joined, pair by pair, until they are so few."""
    found = list(points)
    while len(found) > MOST_POINTS:
        pairs = [found[place : place + 2] for place in range(0, len(found), 2)]
        found = [_joined(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return found


def _extend(connection: Connection, run_id: str, steps: Sequence[Measured]) -> None:
    """However many steps there are, a few statements: others wait while they run."""
    newest = last_of(connection, run_id)
    # The first row is always whole, so it says how many steps a row of this run stands for by now.
    length = connection.scalar(select(AT.n_steps).where(AT.run_id == run_id).order_by(AT.step).limit(1)) or 1
    points = [newest] if newest is not None and newest.n_steps < length else []
    first = newest.last_step + 1 if newest is not None else 1
    for step, one in enumerate(steps, first):
        point = Point(step, 1, one.created, one.values)
        if points and points[-1].n_steps < length:
            points[-1] = _joined(points[-1], point)
        else:
            points.append(point)
    # The one that was not whole is written anew.
    connection.execute(delete(RUN_SERIES).where(AT.run_id == run_id, AT.step >= points[0].step))
    _insert(connection, run_id, points)


def _thin(connection: Connection, run_id: str) -> None:
    if _is_full(connection, run_id):
        points = thinned(of_run(connection, run_id))
        forget(connection, run_id)
        _insert(connection, run_id, points)


def _is_full(connection: Connection, run_id: str) -> bool:
    beyond = select(AT.step).where(AT.run_id == run_id).order_by(AT.step).limit(1).offset(MOST_POINTS)
    return connection.execute(beyond).first() is not None


def _joined(first: Point, second: Point) -> Point:
    """Both as one, with the mean of each value over the steps that have it."""
    values = {
        name: _mean(name, first, second) if name in first.values and name in second.values else value
        for name, value in (first.values | second.values).items()
    }
    return Point(first.step, first.n_steps + second.n_steps, second.created, values)


def _mean(name: str, first: Point, second: Point) -> float:
    total = first.values[name] * first.n_steps + second.values[name] * second.n_steps
    return total / (first.n_steps + second.n_steps)


def _insert(connection: Connection, run_id: str, points: Sequence[Point]) -> None:
    rows = [
        {
            "run_id": run_id,
            "step": point.step,
            "n_steps": point.n_steps,
            "created": point.created,
            "values": msgspec.json.encode(point.values).decode(),
        }
        for point in points
    ]
    connection.execute(insert(RUN_SERIES), rows)


def _newest_first(run_id: str) -> Select[Any]:
    return select(RUN_SERIES).where(AT.run_id == run_id).order_by(AT.step.desc())


def _point(row: Row[tuple[object, ...]]) -> Point:
    values = msgspec.json.decode(row._mapping["values"], type=dict[str, float])
    return Point(row.step, row.n_steps, row.created, values)

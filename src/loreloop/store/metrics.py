"""The metrics that deployments declare for the feedback on their answers."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select

from loreloop.protocol.errors import Conflict
from loreloop.protocol.feedback import Metric
from loreloop.store.feedback_tables import FEEDBACK, METRICS

AT = METRICS.c


def of_deployment(connection: Connection, deployment: str) -> dict[str, Metric]:
    """The declared metrics of a deployment by their names; those that every deployment has are not among them."""
    rows = connection.execute(select(METRICS).where(AT.deployment == deployment).order_by(AT.name))
    return {row.name: Metric(row.name, row.kind, row.level, row.optimize) for row in rows}


def declare(connection: Connection, deployment: str, metrics: Sequence[Metric]) -> None:
    """Puts these in the place of those that were declared. What was said by a metric that is gone stays.

    Conflict where there is feedback by a metric that would then mean something else.
    """
    old = of_deployment(connection, deployment)
    for metric in metrics:
        before = old.get(metric.name)
        if before and (before.kind, before.level) != (metric.kind, metric.level):
            _check_unused(connection, deployment, before)
    connection.execute(delete(METRICS).where(AT.deployment == deployment))
    for metric in metrics:
        values = {"kind": metric.kind, "level": metric.level, "optimize": metric.optimize}
        connection.execute(insert(METRICS).values(deployment=deployment, name=metric.name, **values))


def _check_unused(connection: Connection, deployment: str, metric: Metric) -> None:
    at = FEEDBACK.c
    query = select(at.number).where(at.deployment == deployment, at.metric == metric.name).limit(1)
    if connection.execute(query).first() is not None:
        raise Conflict(
            f"There is feedback on {deployment!r} by the metric {metric.name!r}, which is {metric.kind} at the level "
            f"{metric.level}; declare what differs by another name."
        )

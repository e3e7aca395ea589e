"""`loreloop deploy metrics`: by which metrics feedback on a deployment may be given, shown and declared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loreloop.cli.keys import transaction
from loreloop.cli.models import DATA
from loreloop.cli.tables import JSON, show

if TYPE_CHECKING:
    from loreloop.protocol.feedback import Metric

FILE = click.Path(exists=True, dir_okay=False)


@click.command("metrics")
@click.argument("name")
@click.argument("file", required=False, type=FILE)
@DATA
@JSON
def metrics(name: str, file: str | None, data_dir: str, as_json: bool) -> None:
    """Show the metrics of NAME, those of FILE declared before: tables [metrics.METRIC] with type, level, optimize."""
    from loreloop.protocol.feedback import BUILT_IN
    from loreloop.store import deployments
    from loreloop.store import metrics as rows

    if file is not None:
        declare(data_dir, name, read(file))
    with transaction(data_dir) as connection:
        deployments.current(connection, name)
        declared = rows.of_deployment(connection, name)
    table = [
        {
            "name": metric.name,
            "type": metric.kind,
            "level": metric.level,
            "optimize": metric.optimize,
            "declared": metric.name in declared,
        }
        for metric in (BUILT_IN | declared).values()
    ]
    show(table, as_json)


def read(file: str) -> tuple[Metric, ...]:
    """The metrics of a file; BadRequest where there is none, or one is wrong."""
    from pathlib import Path

    from loreloop.protocol.errors import BadRequest
    from loreloop.protocol.feedback_rules import declared_metrics

    found = declared_metrics(Path(file).read_bytes())
    if not found:
        raise BadRequest(f"{file} declares no metrics; it needs a table [metrics.NAME] for each.")
    return found


def declare(data_dir: str, name: str, found: tuple[Metric, ...]) -> None:
    """Puts these in the place of the metrics that the deployment had. Safe beside a running server, which looks them up
    for each statement."""
    from loreloop.store import deployments
    from loreloop.store import metrics as rows

    with transaction(data_dir) as connection:
        deployments.current(connection, name)
        rows.declare(connection, name, found)

"""`loreloop status`: whether a server runs on a data folder, and what each of its engines has in hand."""

from __future__ import annotations

from typing import Any

import click

from loreloop.cli.models import DATA
from loreloop.cli.operator import no_server
from loreloop.cli.tables import JSON, show

SECONDS = 10.0


@click.command()
@DATA
@JSON
def status(data_dir: str, as_json: bool) -> None:
    """Show the engines of the running server: training engines and replicas."""
    import httpx

    from loreloop.config import Config
    from loreloop.host.server_plan import running_address
    from loreloop.protocol.errors import Unavailable

    address = running_address(Config(data_dir=data_dir))
    if address is None:
        raise no_server(data_dir)
    try:
        health = httpx.get(f"{address.url}/healthz", timeout=SECONDS, trust_env=False).raise_for_status().json()
    except httpx.HTTPError as error:
        raise Unavailable(f"The server at {address.url} does not answer ({error}); look into its log.") from None
    if not as_json:
        click.echo(f"Loreloop {health['version']} at {address.url}")
    rows = [
        {
            "model": engine["model"],
            "engine": _name(engine),
            "state": "up" if engine["up"] else "down",
            "samples": engine["samples"],
            "operations": engine["waiting_ops"],
            "deaths": engine["deaths"],
        }
        for engine in health["engines"]
    ]
    show(rows, as_json)


def _name(engine: dict[str, Any]) -> str:
    if not engine["replica"]:
        return "training"
    return f"{'sampler' if engine['outside'] else 'replica'} {engine['replica']}"

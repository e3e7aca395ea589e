"""`loreloop deploy`: names for weights in a data folder, changed and changed back, also while its server runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.keys import transaction
from loreloop.cli.models import DATA

if TYPE_CHECKING:
    from loreloop.store.rows import Deployment

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
PAGE = 1000


@click.group()
def deploy() -> None:
    """Give weights a name to be asked by; change it, roll it back."""


@deploy.command("set")
@click.argument("name")
@click.argument("target")
@click.option("--canary", metavar="TARGET=5%", help="A second target, for this share of the users.")
@DATA
@JSON
def set_deployment(name: str, target: str, canary: str | None, data_dir: str, as_json: bool) -> None:
    """Let NAME answer with TARGET: a base model, or a tinker://<run>/sampler_weights/<name> checkpoint."""
    import time

    from loreloop.serve.canary import parse_share
    from loreloop.store import deployments
    from loreloop.store.deployments import Owned
    from loreloop.store.rows import Arm, Split

    share = parse_share(canary) if canary else None
    targets = [target, share.target] if share else [target]
    check_free(data_dir, name)
    # Before the transaction, in which a running server could not write.
    bases = {each: base_named(data_dir, each) for each in targets if not each.startswith("tinker://")}
    with transaction(data_dir) as connection:
        found = [
            Owned(Arm(each, bases[each]), None) if each in bases else deployments.arm_of(connection, each)
            for each in targets
        ]
        split = Split(found[0].arm, found[1].arm, share.percent) if share else Split(found[0].arm)
        owner = next((each.key_id for each in found if each.key_id), None)
        made = deployments.set(connection, name, owner, split, time.time(), operator())
    show_all([made], as_json)


@deploy.command("list")
@DATA
@JSON
def list_deployments(data_dir: str, as_json: bool) -> None:
    """Show all deployments as they are now."""
    from loreloop.store import deployments

    found: list[Deployment] = []
    with transaction(data_dir) as connection:
        while page := deployments.all(connection, PAGE, found[-1].name if found else ""):
            found += page
    show_all(found, as_json)


@deploy.command("history")
@click.argument("name")
@click.option("--limit", default=100, type=click.IntRange(1), show_default=True, help="How many versions.")
@DATA
@JSON
def show_history(name: str, limit: int, data_dir: str, as_json: bool) -> None:
    """Show the versions of NAME, newest first."""
    from loreloop.store import deployments

    with transaction(data_dir) as connection:
        found = deployments.history(connection, name, limit)
    show_all(found, as_json)


@deploy.command("rollback")
@click.argument("name")
@DATA
@JSON
def roll_back(name: str, data_dir: str, as_json: bool) -> None:
    """Let NAME answer as it did before its last change; that is a new version."""
    import time

    from loreloop.store import deployments

    with transaction(data_dir) as connection:
        made = deployments.rollback(connection, name, time.time(), operator())
    show_all([made], as_json)


def check_free(data_dir: str, name: str) -> None:
    """A base goes before a deployment of the same name, which nobody could then ask."""
    from pathlib import Path

    from loreloop.protocol.errors import BadRequest

    if Path(data_dir, "models", name, "config.json").expanduser().exists():
        raise BadRequest(f"{name!r} is a base model; give the deployment a name of its own.")


def base_named(data_dir: str, target: str) -> str:
    """A model of the data folder."""
    from pathlib import Path

    from loreloop.model.catalog import Catalog

    return Catalog(Path(data_dir).expanduser()).find(target).name


def operator() -> str:
    """Who is at the command line, for the history."""
    import os

    return os.environ.get("USER") or f"user {os.getuid()}"


def show_all(found: list[Deployment], as_json: bool) -> None:
    from datetime import UTC, datetime

    from loreloop.cli.tables import show

    rows: list[dict[str, Any]] = [
        {
            "name": row.name,
            "version": row.version,
            "target": row.split.main.target,
            "canary": row.split.canary.target if row.split.canary else "",
            "percent": row.split.canary_percent,
            "owner": row.key_id or "",
            "created": datetime.fromtimestamp(row.created, UTC).isoformat(timespec="seconds"),
            "by": row.by,
        }
        for row in found
    ]
    show(rows, as_json)

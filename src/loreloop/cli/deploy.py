"""`loreloop deploy`: names for weights in a data folder, changed and changed back, also while its server runs.

A running server is asked to make the change, since it has the new weights answer once before they count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from loreloop.cli import deploy_metrics
from loreloop.cli.keys import transaction
from loreloop.cli.models import DATA
from loreloop.cli.operator import checked, running_server_of
from loreloop.cli.recording_options import recorded, recording_options
from loreloop.cli.tables import JSON, Moment, show
from loreloop.cli.who import note, operator

if TYPE_CHECKING:
    from loreloop.store.rows import Deployment

NO_DEPLOYMENTS = "No deployments yet; `loreloop deploy set NAME TARGET` makes one."
COLD = click.option("--cold", is_flag=True, help="Do not have a running server load the weights first.")
PAGE = 1000


@click.group()
def deploy() -> None:
    """Give weights a name that clients ask for; move it to other weights, roll it back."""


@deploy.command("set")
@click.argument("name")
@click.argument("target")
@click.option("--canary", metavar="TARGET=5%", help="A second target, which answers this share of the users.")
@click.option("--metrics", type=deploy_metrics.FILE, help="A TOML file of metrics for the feedback on its answers.")
@recording_options
@COLD
@DATA
@JSON
def set_deployment(
    name: str, target: str, canary: str | None, cold: bool, data_dir: str, as_json: bool, **flags: Any
) -> None:
    """Let NAME answer with TARGET: a base model, or a tinker://<run>/sampler_weights/<name> checkpoint.

    What is said of recording and metrics stays as it was where a flag is left out.
    """
    from loreloop.deployments.canary import parse_share

    share = parse_share(canary) if canary else None
    file = flags.pop("metrics")
    declared = deploy_metrics.read(file) if file else ()
    # Checked here as well as in the server, since no server may be running.
    check_free(data_dir, name)
    body: dict[str, Any] = {"target": target} | recorded(flags)
    if share:
        body |= {"canary": share.target, "canary_percent": share.percent}
    # A running server makes the change itself, because it first tries the weights.
    if not by_server(data_dir, "PUT", name, "", body, cold=cold):
        set_in_store(data_dir, name, body)
    if declared:
        deploy_metrics.declare(data_dir, name, declared)
    show_current(data_dir, name, as_json)


def set_in_store(data_dir: str, name: str, body: dict[str, Any]) -> None:
    """Makes a new version of a deployment without a server. NotFound where a target is not in the data folder."""
    import time

    import msgspec

    from loreloop.deployments.rollout import recording_of
    from loreloop.protocol.loop_rest import SetDeployment
    from loreloop.store import deployments
    from loreloop.store.deployments import Owned
    from loreloop.store.rows import Arm, Split

    wanted = msgspec.convert(body, SetDeployment)
    targets = [wanted.target, wanted.canary] if wanted.canary else [wanted.target]
    # Before the transaction, in which a running server could not write.
    bases = {each: base_named(data_dir, each) for each in targets if not each.startswith("tinker://")}
    with transaction(data_dir, new=bool(bases)) as connection:
        found = [
            Owned(Arm(each, bases[each]), None) if each in bases else deployments.arm_of(connection, each)
            for each in targets
        ]
        split = Split(found[0].arm, found[1].arm, wanted.canary_percent) if wanted.canary else Split(found[0].arm)
        # The owner is the key that owns a checkpoint among the targets; a bare base belongs to nobody.
        owner = next((each.key_id for each in found if each.key_id), None)
        recording = recording_of(wanted, deployments.find(connection, name))
        deployments.set(connection, name, owner, split, time.time(), operator(), recording=recording)
        note(connection, "deployment_set", owner or "", deployment=name)


@deploy.command("list")
@DATA
@JSON
def list_deployments(data_dir: str, as_json: bool) -> None:
    """Show all deployments as they are now."""
    from loreloop.store import deployments

    found: list[Deployment] = []
    with transaction(data_dir) as connection:
        # The store reads by pages, so that a long list does not keep the database busy.
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


@deploy.command("turns")
@click.argument("name")
@DATA
@JSON
def count_turns(name: str, data_dir: str, as_json: bool) -> None:
    """Show what became of the turns that NAME has recorded: how many have which fate, and how many are gone."""
    from loreloop.store import deployments, turns

    with transaction(data_dir) as connection:
        deployments.current(connection, name)
        counts = turns.counts(connection, name)
    gone = {"expired so far": counts.expired, "dropped so far": counts.dropped, "mixed episodes": counts.mixed_episodes}
    show([{"turns": fate, "number": n} for fate, n in (counts.fates | gone).items()], as_json)


@deploy.command("rollback")
@click.argument("name")
@COLD
@DATA
@JSON
def roll_back(name: str, cold: bool, data_dir: str, as_json: bool) -> None:
    """Let NAME answer as it did before its last change; that is a new version."""
    import time

    from loreloop.store import deployments

    if not by_server(data_dir, "POST", name, "/rollback", None, cold=cold):
        with transaction(data_dir) as connection:
            made = deployments.rollback(connection, name, time.time(), operator())
            note(connection, "deployment_rollback", made.key_id or "", deployment=name)
    show_current(data_dir, name, as_json)


@deploy.command("delete")
@click.argument("name")
@DATA
def delete_deployment(name: str, data_dir: str) -> None:
    """Forget NAME and its history; its checkpoints stay, and may be deleted from then on."""
    from loreloop.store import deployments

    with transaction(data_dir) as connection:
        owner = deployments.current(connection, name).key_id
        deployments.remove(connection, name)
        note(connection, "deployment_delete", owner or "", deployment=name)
    click.echo(f"{name} is no deployment any more.")


deploy.add_command(deploy_metrics.metrics)


def by_server(data_dir: str, method: str, name: str, verb: str, body: object, *, cold: bool) -> bool:
    """Has the running server make a change; False where there is none, or it shall not be asked."""
    from urllib.parse import quote

    # Without a server's trial, weights that cannot be loaded are noticed with the first request only.
    if cold:
        return False
    with running_server_of(data_dir) as client:
        if client is not None:
            checked(client.request(method, f"/loop/v1/deployments/{quote(name, safe='')}{verb}", json=body))
        return client is not None


def show_current(data_dir: str, name: str, as_json: bool) -> None:
    """Prints the current version of a deployment."""
    from loreloop.store import deployments

    with transaction(data_dir) as connection:
        found = deployments.current(connection, name)
    show_all([found], as_json)


def check_free(data_dir: str, name: str) -> None:
    """A base goes before a deployment of the same name, which nobody could then ask."""
    from pathlib import Path

    from loreloop.protocol.errors import BadRequest

    if Path(data_dir, "models", name, "config.json").expanduser().exists():
        raise BadRequest(f"{name!r} is a base model; give the deployment a name of its own.")


def base_named(data_dir: str, target: str) -> str:
    """A model of the data folder."""
    from pathlib import Path

    from loreloop.formats.catalog import Catalog

    return Catalog(Path(data_dir).expanduser()).find(target).name


def show_all(found: list[Deployment], as_json: bool) -> None:
    """Prints versions of deployments as rows."""
    rows: list[dict[str, Any]] = [
        {
            "name": row.name,
            "version": row.version,
            "target": row.split.main.target,
            "canary": row.split.canary.target if row.split.canary else "",
            "percent": row.split.canary_percent,
            "owner": row.key_id or "",
            "created": Moment(row.created),
            "by": row.by,
            "records": row.recording.record,
        }
        for row in found
    ]
    show(rows, as_json, empty=NO_DEPLOYMENTS)

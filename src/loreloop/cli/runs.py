"""`loreloop runs`: the training runs of a data folder, of all keys, looked at and deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.keys import key_id_of, transaction
from loreloop.cli.models import DATA
from loreloop.cli.operator import checked, running_server_of
from loreloop.cli.tables import JSON, LIMIT, Moment, Size, show

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from loreloop.store.overview import CheckpointSummary, RunSummary
    from loreloop.store.removal import Removed
    from loreloop.store.segments import Segments

KEY = click.option("--key", "key_name", metavar="NAME", help="Only those of this key, by its name or id.")
YES = click.option("--yes", is_flag=True, help="Do not ask first.")
NO_RUNS = "No training runs yet; a client makes one with create_lora_training_client (see README)."
NO_CHECKPOINTS = "No checkpoints yet; a client makes one with save_state or save_weights_for_sampler."


@click.group()
def runs() -> None:
    """List, show and delete training runs."""


@runs.command("list")
@KEY
@LIMIT
@DATA
@JSON
def list_runs(key_name: str | None, limit: int, data_dir: str, as_json: bool) -> None:
    """Show training runs, those that were used last first."""
    from loreloop.store import overview

    with transaction(data_dir) as connection:
        found = overview.list_runs(connection, key_id_of(connection, key_name), limit)
    show([run_row(one) for one in found], as_json, empty=NO_RUNS)


@runs.command("show")
@click.argument("run_id", metavar="RUN")
@DATA
@JSON
def show_run(run_id: str, data_dir: str, as_json: bool) -> None:
    """Show one run and its checkpoints."""
    import json

    from loreloop.cli.tables import cell, exactly
    from loreloop.store import overview

    run_id = bare(run_id)
    with transaction(data_dir) as connection:
        one = overview.summary(connection, overview.find_run(connection, run_id))
        # The limit is the run's own number of checkpoints, so that all are listed.
        saved = overview.list_checkpoints(connection, None, run_id, one.n_checkpoints or 1)
    row = run_row(one) | {"metadata": one.run.user_metadata, "lost": one.run.lost}
    rows = [checkpoint_row(each) for each in saved]
    if as_json:
        both = {name: exactly(value) for name, value in row.items()}
        listed = [{name: exactly(value) for name, value in each.items()} for each in rows]
        click.echo(json.dumps(both | {"checkpoints": listed}))
        return
    for name, value in row.items():
        if value is not None:
            click.echo(f"{name:12} {cell(value)}")
    click.echo()
    show(rows, as_json, empty=NO_CHECKPOINTS)


@runs.command("rm")
@click.argument("run_id", metavar="RUN")
@YES
@click.option("--force", is_flag=True, help="Even if it is live; its client is told that it is gone.")
@DATA
@JSON
def remove_run(run_id: str, yes: bool, force: bool, data_dir: str, as_json: bool) -> None:
    """Delete a run with all its checkpoints. Refused where a deployment answers with one of them."""
    from loreloop.store import overview, removal

    run_id = bare(run_id)
    with transaction(data_dir) as connection:
        one = overview.summary(connection, overview.find_run(connection, run_id))
        # Checked before the question, so that nobody confirms what is then refused.
        removal.check_removable(connection, run_id, force=force)
        saved = overview.list_checkpoints(connection, None, run_id, one.n_checkpoints or 1)
    say_what_goes([f"run {run_id}", *(str(each.row.path) for each in saved)], one.size_bytes, yes=yes)
    with running_server_of(data_dir) as client:
        # A running server deletes by itself, since it has to tell its engines.
        if client is not None:
            checked(client.delete(f"/loop/v1/runs/{run_id}", params={"force": str(force).lower()}))
        else:
            remove_from_store(data_dir, run_id, force=force)
    show([{"deleted": run_id, "checkpoints": one.n_checkpoints, "size": Size(one.size_bytes)}], as_json)


def remove_from_store(data_dir: str, run_id: str, *, force: bool) -> None:
    """Where no server runs; none can start meanwhile."""
    from pathlib import Path

    from loreloop.host.supervisor import lock_data
    from loreloop.store.files import delete
    from loreloop.store.store import Store

    folder = Path(data_dir).expanduser()
    # The lock keeps a server from starting while rows and files go.
    with lock_data(folder / "run"):
        store = Store(folder)
        try:
            # On the writer's thread, which syncs the ends of operations before the rows that point at them.
            removed = store.write_and_wait(_removed, store.segments, run_id, force=force)
        finally:
            store.close()
        for each in removed.folders:
            delete(Path(each))
        for file in removed.files:
            Path(file).unlink(missing_ok=True)


def _removed(connection: Connection, segments: Segments, run_id: str, *, force: bool) -> Removed:
    """Removes a run, with an entry in the audit log for each checkpoint of it, in the same transaction."""
    import time

    from loreloop.cli.who import note
    from loreloop.store import overview, removal

    owner = overview.find_run(connection, run_id).key_id
    removed = removal.remove_run(connection, segments, run_id, time.time(), force=force)
    for path in removed.paths:
        note(connection, "checkpoint_delete", owner, tinker_path=path)
    return removed


def say_what_goes(things: list[str], n_bytes: int, *, yes: bool) -> None:
    """Names what will be deleted, and asks, unless told not to; a "no" ends the command with exit code 1."""
    click.echo(f"This deletes {Size(n_bytes)}, for good:", err=True)
    for thing in things:
        click.echo(f"  {thing}", err=True)
    if not yes:
        click.confirm("Delete?", abort=True, err=True)


def bare(run_id: str) -> str:
    """A run is named by its id, or as `tinker://<id>`."""
    return run_id.removeprefix("tinker://").rstrip("/")


def run_row(one: RunSummary) -> dict[str, Any]:
    """A run as a row for a table or for JSON."""
    run = one.run
    return {
        "run": run.id,
        "base_model": run.base_model,
        "rank": run.lora.rank,
        "key": one.key_name,
        "state": "live" if run.live else "lost" if run.lost else "ended",
        "checkpoints": one.n_checkpoints,
        "size": Size(one.size_bytes),
        "created": Moment(run.created),
        "last_used": Moment(run.last_request),
    }


def checkpoint_row(one: CheckpointSummary) -> dict[str, Any]:
    """A checkpoint as a row for a table or for JSON."""
    row = one.row
    return {
        "path": str(row.path),
        "base_model": one.base_model,
        "key": one.key_name,
        "size": Size(row.size_bytes),
        "created": Moment(row.created),
        "expires": Moment(row.expires) if row.expires is not None else None,
        "deployed_as": " ".join(one.deployments) or None,
    }

"""`loreloop keys`: make, list and revoke the keys of a data folder, also while its server runs."""

from __future__ import annotations

import time

import click

from loreloop.cli.models import DATA

SCOPES = ("admin", "train", "infer")


@click.group()
def keys() -> None:
    """Create, list and revoke keys."""


def check_scopes(_context: click.Context, _option: click.Parameter, scopes: tuple[str, ...]) -> tuple[str, ...]:
    for scope in scopes:
        if scope not in SCOPES and not names_deployment(scope):
            raise click.BadParameter(f"{scope!r} is none of {', '.join(SCOPES)}, and no infer:NAME of a deployment.")
    return scopes


def names_deployment(scope: str) -> bool:
    from loreloop.protocol.paths import NAME

    kind, _, name = scope.partition(":")
    return kind == "infer" and NAME.fullmatch(name) is not None


@keys.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar=f"[{'|'.join(SCOPES)}|infer:NAME]",
    callback=check_scopes,
    help="What it may do; infer:NAME: ask the deployment NAME, and nothing else. Repeatable.  [default: train]",
)
@DATA
def create_key(name: str, scopes: tuple[str, ...], data_dir: str) -> None:
    """Make a key; its secret is printed once."""
    from loreloop.store import keys as rows

    with transaction(data_dir) as connection:
        made = rows.create(connection, name, scopes or ("train",), time.time())
    click.echo(made.secret)
    click.echo(f"Key {made.row.id} ({name}), scopes {', '.join(made.row.scopes)}. It is shown only now.", err=True)


@keys.command("list")
@DATA
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_keys(data_dir: str, as_json: bool) -> None:
    """Show all keys, without their secrets."""
    from loreloop.cli.tables import show
    from loreloop.store import keys as rows

    with transaction(data_dir) as connection:
        found = rows.list_all(connection)
    show(
        [
            {"id": row.id, "name": row.name, "scopes": " ".join(row.scopes), "revoked": row.revoked is not None}
            for row in found
        ],
        as_json,
    )


@keys.command("revoke")
@click.argument("key_id")
@DATA
def revoke_key(key_id: str, data_dir: str) -> None:
    """Shut a key out, by its id."""
    from loreloop.store import keys as rows

    with transaction(data_dir) as connection:
        rows.revoke(connection, key_id, time.time())
    click.echo(f"Key {key_id} is revoked.")


def transaction(data_dir: str):  # type: ignore[no-untyped-def]
    """A transaction on the data folder's database."""
    from pathlib import Path

    from loreloop.store.store import open_database

    return open_database(Path(data_dir).expanduser()).begin()

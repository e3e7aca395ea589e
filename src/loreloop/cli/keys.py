"""`loreloop keys`: make, list and revoke the keys of a data folder, also while its server runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.models import DATA
from loreloop.cli.tables import JSON, Moment, show
from loreloop.cli.who import note

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from loreloop.store.rows import KeyUsage

NO_KEYS = "No keys yet; `loreloop keys create NAME` makes one, and so does the first `loreloop serve`."
SCOPES = ("admin", "train", "infer", "feedback")
OF_DEPLOYMENTS = ("infer", "feedback")  # scopes that may be for one deployment


@click.group()
def keys() -> None:
    """Create, list and revoke keys."""


def check_scopes(_context: click.Context, _option: click.Parameter, scopes: tuple[str, ...]) -> tuple[str, ...]:
    """The scopes as they are; BadParameter where one is neither known nor of the form `infer:NAME` or
    `feedback:NAME`."""
    for scope in scopes:
        if scope not in SCOPES and not names_deployment(scope):
            raise click.BadParameter(f"{scope!r} is none of {', '.join(SCOPES)}, and no infer:NAME or feedback:NAME.")
    return scopes


def names_deployment(scope: str) -> bool:
    """Whether a scope is for one deployment, as `infer:NAME` is."""
    from loreloop.protocol.paths import NAME

    kind, _, name = scope.partition(":")
    return kind in OF_DEPLOYMENTS and NAME.fullmatch(name) is not None


def check_name(_context: click.Context, _argument: click.Parameter, name: str) -> str:
    """The name as it is; BadParameter where a list could not show it."""
    if not name.strip() or not name.isprintable():
        raise click.BadParameter("A key needs a name that can be read in a list.")
    return name


@keys.command("create")
@click.argument("name", callback=check_name)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar=f"[{'|'.join(SCOPES)}|infer:NAME|feedback:NAME]",
    callback=check_scopes,
    help="What the key may do; infer:NAME: ask the deployment NAME, and nothing else; feedback:NAME: judge its "
    "answers. Repeatable.  [default: train]",
)
@DATA
@JSON
def create_key(name: str, scopes: tuple[str, ...], data_dir: str, as_json: bool) -> None:
    """Make a key; its secret is printed once."""
    from loreloop.store import keys as rows

    with transaction(data_dir, new=True) as connection:
        made = rows.create(connection, name, scopes or ("train",), time.time())
        note(connection, "key_create", made.row.id, name=name, scopes=" ".join(made.row.scopes))
    # The secret is part of the row here, because a program reads one line only.
    if as_json:
        show([{"id": made.row.id, "name": name, "scopes": " ".join(made.row.scopes), "secret": made.secret}], as_json)
        return
    # The secret alone goes to standard output, so that a shell can take it into a variable.
    click.echo(made.secret)
    click.echo(f"Key {made.row.id} ({name}), scopes {', '.join(made.row.scopes)}. It is shown only now.", err=True)


@keys.command("list")
@DATA
@JSON
def list_keys(data_dir: str, as_json: bool) -> None:
    """Show all keys, without their secrets."""
    from loreloop.store import keys as rows
    from loreloop.store import usage

    with transaction(data_dir) as connection:
        # Both are read in one transaction, so that no key is listed without its last use.
        found, used = rows.list_all(connection), usage.by_key(connection)
    table = [
        {
            "id": row.id,
            "name": row.name,
            "scopes": " ".join(row.scopes),
            "created": Moment(row.created),
            "last_used": Moment(used[row.id].last_used) if row.id in used else None,
            "revoked": row.revoked is not None,
        }
        for row in found
    ]
    show(table, as_json, empty=NO_KEYS)


@keys.command("usage")
@DATA
@JSON
def show_usage(data_dir: str, as_json: bool) -> None:
    """Show what each key has used: requests that ended, and tokens.

    Prompt and generated tokens are those of samples, trained tokens those of forward_backward passes that were done. A
    running server writes its counts down every two seconds.
    """
    from loreloop.store import keys as rows
    from loreloop.store import usage
    from loreloop.store.rows import KeyUsage

    with transaction(data_dir) as connection:
        found, used = rows.list_all(connection), usage.by_key(connection)
    table = [usage_row(row.id, row.name, used.get(row.id, KeyUsage())) for row in found]
    show(table, as_json, empty=NO_KEYS)


def usage_row(key_id: str, name: str, used: KeyUsage) -> dict[str, Any]:
    """What a key has used, as a row: numbers of requests and of tokens."""
    return {
        "name": name,
        "id": key_id,
        "requests": used.requests,
        "prompt_tokens": used.prompt_tokens,
        "generated_tokens": used.generated_tokens,
        "trained_tokens": used.trained_tokens,
        "last_used": Moment(used.last_used) if used.last_used else None,
    }


@keys.command("revoke")
@click.argument("key", metavar="NAME")
@DATA
def revoke_key(key: str, data_dir: str) -> None:
    """Revoke a key, given by its name or its id: it is refused from then on."""
    from loreloop.store import keys as rows

    with transaction(data_dir) as connection:
        row = rows.called(connection, key, active=True)
        rows.revoke(connection, row.id, time.time())
        note(connection, "key_revoke", row.id, name=row.name)
    click.echo(f"Key {row.id} ({row.name}) is revoked.")


def key_id_of(connection: Connection, key: str | None) -> str | None:
    """The id of a key by its name or id; None for None."""
    from loreloop.store import keys as rows

    return None if key is None else rows.called(connection, key).id


def transaction(data_dir: str, *, new: bool = False):  # type: ignore[no-untyped-def]
    """A transaction on the data folder's database. Only with `new` is one made where there is none yet; else nothing is
    left behind, and the transaction is on an empty one, since looking for something must not make a folder."""
    from pathlib import Path

    from loreloop.store.inspection import has_database
    from loreloop.store.store import empty_database, open_database

    folder = Path(data_dir).expanduser()
    # Only commands that write may make a database; one that looks must not leave a folder behind.
    if new or has_database(folder):
        return open_database(folder).begin()
    if not folder.exists():
        click.echo(f"There is no data folder {folder} yet; `loreloop serve` makes one.", err=True)
    return empty_database().begin()

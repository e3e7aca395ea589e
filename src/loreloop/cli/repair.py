"""`loreloop repair`: makes the database of a data folder agree with the checkpoints that lie in it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loreloop.cli.models import DATA
from loreloop.cli.tables import JSON, Size, show
from loreloop.cli.who import note

if TYPE_CHECKING:
    from sqlalchemy import Connection

NOTHING = "The database and the checkpoints belong to each other; there is nothing to repair."


@click.command()
@click.option("--yes", is_flag=True, help="Do it; without this flag it is only told.")
@click.option("--owner", metavar="NAME", help="Whose the adopted checkpoints are, where their runs are unknown too.")
@click.option("--forget", is_flag=True, help="Also take away the rows of checkpoints whose files are gone.")
@click.option("--new-database", is_flag=True, help="Make a database where there is none beside the files.")
@DATA
@JSON
def repair(yes: bool, owner: str | None, forget: bool, new_database: bool, data_dir: str, as_json: bool) -> None:
    """Adopt checkpoints whose rows are lost, and name what is damaged or gone, while no server runs.

    Exit code 1 where something is damaged or gone and stays so.
    """
    import time

    from loreloop.host.supervisor import lock_data
    from loreloop.protocol.errors import NotFound
    from loreloop.store import repair as work
    from loreloop.store.store import empty_database, open_database

    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise NotFound(f"There is no data folder {folder}; name another --data.")
    with ExitStack() as stack:
        stack.enter_context(lock_data(folder / "run"))
        if new_database:
            check_no_database(folder)
        if new_database and yes:
            make_database(folder)
        if forget and yes:
            check_checkpoints(folder)
        # What is only told must not leave a database behind.
        database = empty_database() if new_database and not yes else open_database(folder)
        connection = stack.enter_context(database.begin())
        strays, gone = work.strays(connection, folder), work.without_files(connection)
        rows: list[dict[str, Any]] = []
        key_id = owner_of(connection, owner) if yes and any(not one.damage for one in strays) else ""
        for one in strays:
            if yes and not one.damage:
                work.adopt(connection, one, key_id, time.time())
            done = "damaged" if one.damage else "adopted" if yes else "to adopt"
            rows.append({"path": str(one.path), "state": done, "size": Size(one.n_bytes), "what": one.damage})
        for row in gone:
            if yes and forget:
                work.forget(connection, row)
                note(connection, "checkpoint_delete", row.key_id, tinker_path=str(row.path), why="its files were gone")
            done = "forgotten" if yes and forget else "files gone"
            rows.append({"path": str(row.path), "state": done, "size": None, "what": f"there is no {row.folder}"})
    show(rows, as_json, empty=NOTHING)
    if any(row["state"] in ("damaged", "files gone") for row in rows):
        sys.exit(1)


def owner_of(connection: Connection, owner: str | None) -> str:
    """The id of the key that is named, or of the only one there is; BadRequest where that does not tell."""
    from loreloop.protocol.errors import BadRequest
    from loreloop.store import keys

    if owner is not None:
        return keys.called(connection, owner).id
    found = [row for row in keys.list_all(connection) if row.revoked is None]
    if len(found) != 1:
        raise BadRequest("Name the key that adopted checkpoints shall belong to, with --owner; `loreloop keys list`.")
    return found[0].id


def check_no_database(folder: Path) -> None:
    """Conflict where a folder has a database."""
    from loreloop.protocol.errors import Conflict
    from loreloop.store.inspection import DATABASE

    if (folder / DATABASE).exists() and (folder / DATABASE).stat().st_size:
        raise Conflict(f"There is a database {folder / DATABASE}; move it aside, if it is damaged.")


def check_checkpoints(folder: Path) -> None:
    """NotFound where the folder of all checkpoints is missing, which is rather a disk that is away than a loss."""
    from loreloop.protocol.errors import NotFound
    from loreloop.store.files import Files

    checkpoints = Files(folder).checkpoints
    if not checkpoints.is_dir():
        raise NotFound(
            f"There is no {checkpoints} at all, so no row is forgotten: is a disk missing? Where all checkpoints are "
            "really gone, make an empty folder there first."
        )


def make_database(folder: Path) -> None:
    """A database for a folder that has lost its own, with a key."""
    import time

    from loreloop.store import keys
    from loreloop.store.store import new_database

    with new_database(folder).begin() as connection:
        secret = keys.create(connection, "repaired", ("admin",), time.time()).secret
    click.echo(f"A new database is made, with the key {secret}, which is shown only now.", err=True)

"""`loreloop files`: files that clients have uploaded, of all keys: listed, brought in, and deleted."""

from __future__ import annotations

from typing import Any

import click

from loreloop.cli.adapters import owner_named
from loreloop.cli.keys import key_id_of, transaction
from loreloop.cli.models import DATA
from loreloop.cli.runs import KEY
from loreloop.cli.tables import JSON, LIMIT, Moment, Size, show

NO_FILES = "No files yet; a client uploads one with files.create, and so does `loreloop files upload`."


@click.group()
def files() -> None:
    """List, upload and delete files for fine-tuning jobs."""


@files.command("list")
@KEY
@LIMIT
@DATA
@JSON
def list_files(key_name: str | None, limit: int, data_dir: str, as_json: bool) -> None:
    """Show uploaded files and results of jobs, the newest first."""
    from loreloop.store import uploads

    with transaction(data_dir) as connection:
        found = uploads.list_page(connection, key_id_of(connection, key_name), limit)
    table = [
        {
            "file": row.id,
            "name": row.name,
            "purpose": row.purpose,
            "size": Size(row.n_bytes),
            "examples": (row.contents or {}).get("n_examples"),
            "key": row.key_id,
            "created": Moment(row.created),
            "expires": Moment(row.expires) if row.expires is not None else None,
        }
        for row in found
    ]
    show(table, as_json, empty=NO_FILES)


@files.command("upload")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--key", "owner", help="The key that shall own it, by id or name; needed where there are several.")
@DATA
@JSON
def upload_file(file: str, owner: str | None, data_dir: str, as_json: bool) -> None:
    """Bring in a file of examples, checked as an upload is; also while no server runs."""
    import shutil
    import time
    from pathlib import Path

    import msgspec

    from loreloop.config import LimitConfig
    from loreloop.learn.jobs.contents import contents_of
    from loreloop.store import uploads
    from loreloop.store.files import Files
    from loreloop.store.job_rows import FileRow

    source, places = Path(file), Files(Path(data_dir).expanduser())
    with transaction(data_dir) as connection:
        key = owner_named(connection, owner)
    contents, file_id = contents_of(source), uploads.new_id()
    # The body lies in its place before the row names it.
    arriving = places.arriving_upload()
    shutil.copyfile(source, arriving)
    n_bytes = arriving.stat().st_size
    places.put_upload(arriving, file_id)
    row = FileRow(
        id=file_id,
        key_id=key.id,
        name=source.name,
        purpose="fine-tune",
        n_bytes=n_bytes,
        created=time.time(),
        contents=msgspec.to_builtins(contents),
    )
    with transaction(data_dir) as connection:
        uploads.add(connection, row, LimitConfig().files_mib << 20)
    found: dict[str, Any] = {"file": file_id, "examples": contents.n_examples, "forms": " ".join(contents.forms)}
    show([found], as_json)


@files.command("delete")
@click.argument("file_id", metavar="FILE")
@DATA
@JSON
def delete_file(file_id: str, data_dir: str, as_json: bool) -> None:
    """Delete a file. Refused while a job that is not finished needs it."""
    from pathlib import Path

    from loreloop.store import uploads
    from loreloop.store.files import Files

    places = Files(Path(data_dir).expanduser())
    with transaction(data_dir) as connection:
        row = uploads.of_anyone(connection, file_id)
        uploads.remove(connection, places, row.key_id, file_id)
    # The row is gone, and with it anybody who would read the body.
    places.upload(file_id).unlink(missing_ok=True)
    show([{"deleted": file_id, "size": Size(row.n_bytes)}], as_json)

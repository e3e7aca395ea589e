"""Uploaded files and results of jobs: a row each, written after the body. Seen by the key that owns them.

Bounded for every key in number and bytes; nothing is thrown away to make room. Knows no format.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select

from loreloop.protocol.errors import Conflict, NotFound, TooLarge
from loreloop.store.checkpoints import leave_files
from loreloop.store.files import Files
from loreloop.store.job_rows import FileRow
from loreloop.store.pages import number_of_row
from loreloop.store.schema import FILES, JOBS, KEYS

MAX_FILES = 10_000  # of a key
UNFINISHED = ("queued", "running", "paused")


def new_id() -> str:
    """An id that nobody has and nobody can guess."""
    return f"file-{secrets.token_hex(12)}"


def add(connection: Connection, row: FileRow, most_bytes: int) -> FileRow:
    """Makes a file exist whose body lies in its place already. TooLarge where its key has no room left."""
    of_key = select(func.count(), func.coalesce(func.sum(FILES.c.n_bytes), 0)).where(FILES.c.key_id == row.key_id)
    n_files, n_bytes = connection.execute(of_key).one()
    if n_files >= MAX_FILES or n_bytes + row.n_bytes > most_bytes:
        raise TooLarge(
            f"The file {row.name[:80]!r} has {row.n_bytes} bytes, and its key has {n_files} files of {n_bytes} bytes; "
            f"it may have {MAX_FILES} of {most_bytes} in all. Delete some."
        )
    return _added(connection, row)


def bytes_of(connection: Connection, key_id: str) -> int:
    """How many bytes all files of a key have."""
    return connection.scalar(select(func.coalesce(func.sum(FILES.c.n_bytes), 0)).where(FILES.c.key_id == key_id)) or 0


def add_result(connection: Connection, row: FileRow) -> FileRow:
    """As `add`, for what a job leaves: a job that is done must not fail for want of room."""
    return _added(connection, row)


def get(connection: Connection, key_id: str, file_id: str) -> FileRow:
    """A file of this key; NotFound where it is another key's or there is none."""
    row = connection.execute(select(FILES).where(FILES.c.id == file_id, FILES.c.key_id == key_id)).first()
    if row is None or (row.expires is not None and row.expires <= time.time()):
        raise NotFound(f"There is no file {file_id[:80]!r} of this key; GET /v1/files lists them.")
    return _row(row)


def of_anyone(connection: Connection, file_id: str) -> FileRow:
    """For the operator of the server."""
    row = connection.execute(select(FILES).where(FILES.c.id == file_id)).first()
    if row is None:
        raise NotFound(f"There is no file {file_id[:80]!r}; `loreloop files list` shows them.")
    return _row(row)


def list_page(
    connection: Connection,
    key_id: str | None,
    limit: int,
    *,
    after: str = "",
    purpose: str = "",
    ascending: bool = False,
) -> list[FileRow]:
    """`limit` files of a key (None: of all) behind the file `after`, by the time of their upload; BadRequest where that
    is none of the key."""
    wanted = select(FILES) if key_id is None else select(FILES).where(FILES.c.key_id == key_id)
    if purpose:
        wanted = wanted.where(FILES.c.purpose == purpose)
    if after:
        number = number_of_row(connection, FILES, key_id, after, "file")
        wanted = wanted.where(FILES.c.number > number if ascending else FILES.c.number < number)
    order = FILES.c.number if ascending else FILES.c.number.desc()
    return [_row(row) for row in connection.execute(wanted.order_by(order).limit(limit))]


def remove(connection: Connection, files: Files, key_id: str, file_id: str) -> None:
    """Takes the row away and leaves the body to `take_left_files`. Conflict while an unfinished job needs it."""
    row = get(connection, key_id, file_id)
    needs = func.json_extract(JOBS.c.plan, "$.training_file"), func.json_extract(JOBS.c.plan, "$.validation_file")
    unfinished = select(JOBS.c.id).where(JOBS.c.key_id == key_id, JOBS.c.status.in_(UNFINISHED))
    using = connection.scalar(unfinished.where((needs[0] == file_id) | (needs[1] == file_id)).limit(1))
    if using is not None:
        raise Conflict(f"The file {file_id} is needed by the job {using}; cancel that, then delete the file.")
    connection.execute(delete(FILES).where(FILES.c.id == row.id))
    leave_files(connection, [str(files.upload(row.id))])


def sweep(connection: Connection, files: Files, now: float) -> None:
    """Takes away what has expired, and what keys have that are revoked or gone, unless a job still needs it."""
    active = select(KEYS.c.id).where(KEYS.c.revoked.is_(None))
    over = (FILES.c.expires <= now) | FILES.c.key_id.not_in(active)
    plans = "\n".join(_needed_plans(connection))
    for file_id in connection.scalars(select(FILES.c.id).where(over)).all():
        if file_id not in plans:
            connection.execute(delete(FILES).where(FILES.c.id == file_id))
            leave_files(connection, [str(files.upload(file_id))])


def next_expiry(connection: Connection) -> float | None:
    """When the next file expires, so that the sweeper can sleep until then; those that jobs still need do not count."""
    plans = "\n".join(_needed_plans(connection))
    dated = select(FILES.c.id, FILES.c.expires).where(FILES.c.expires.is_not(None)).order_by(FILES.c.expires)
    return next((row.expires for row in connection.execute(dated) if row.id not in plans), None)


def unknown_bodies(connection: Connection, files: Files, changed_before: float) -> list[Path]:
    """Bodies without a row: of uploads that were killed between the two."""
    known = set(connection.scalars(select(FILES.c.id)))
    found = (path for path in files.uploads.glob("*") if path.name not in known and not path.name.startswith("."))
    return [path for path in found if path.stat().st_ctime < changed_before]


def _needed_plans(connection: Connection) -> Iterable[str]:
    return connection.scalars(select(JOBS.c.plan).where(JOBS.c.status.in_(UNFINISHED)))


def _added(connection: Connection, row: FileRow) -> FileRow:
    contents = msgspec.json.encode(row.contents).decode() if row.contents is not None else None
    values = msgspec.structs.asdict(row) | {"contents": contents}
    del values["number"]
    result = connection.execute(insert(FILES).values(**values))
    return msgspec.structs.replace(row, number=result.inserted_primary_key[0])  # type: ignore[index]


def _row(row: Row[tuple[object, ...]]) -> FileRow:
    values = {name: row._mapping[name] for name in FileRow.__struct_fields__}
    contents = msgspec.json.decode(values["contents"]) if values["contents"] else None
    return FileRow(**values | {"contents": contents})

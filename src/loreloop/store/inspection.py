"""Looks at a data folder before a server starts on it, and changes nothing in it but to keep what would be swept.

What cannot be served is refused with what is wrong and what can be done; what can be served and has lost something is
told in notes. `open_database` asks for the quick checks, `loreloop serve` for all. Decides nothing about rows.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.folders import make_private
from loreloop.protocol.paths import file_name
from loreloop.store import lost
from loreloop.store.files import SECRET, Files, read_secret
from loreloop.store.keys import hash_of
from loreloop.store.segments import Location, records
from loreloop.store.steps import STEPS
from loreloop.store.wal import lost_of_log, was_deleted

DATABASE = "loreloop.db"
MAGIC = b"SQLite format 3\x00"
SHOWN = 3  # problems, checkpoints or runs that a message names


def check_place(folder: Path) -> None:
    """BadRequest unless the database of a data folder is one of ours, or the folder a new one.

    Looks at no page but the first, and must run before SQLite opens the file: it deletes the log of an empty one.
    """
    database = folder / DATABASE
    try:
        make_private(folder)
        if database.is_dir():
            raise refusal(database, "it is a folder")
        head = _head(database)
        log_bytes = _size(database.with_name(f"{DATABASE}-wal"))
        if not head and (log_bytes or _is_used(folder)):
            raise BadRequest(
                f"{database} is {'empty' if database.exists() else 'missing'}, but {folder} holds a journal or "
                "checkpoints. A new database would know nothing of them, so none is made. Bring the database back from "
                "a backup, or name another --data."
            )
        if head and head != MAGIC:
            raise refusal(database, "it does not begin as a database does")
        for part in (folder, *(folder / name for name in ("journal", "checkpoints", "run"))):
            if part.exists() and not os.access(part, os.R_OK | os.W_OK | os.X_OK):
                raise BadRequest(f"{part} cannot be read and written by this user.")
    except OSError as error:
        raise BadRequest(f"The data folder {folder} cannot be used: {error.strerror} ({error.filename}).") from None


def has_database(folder: Path) -> bool:
    """Whether there is a database to open, or something else that whoever opens it has to be told of."""
    try:
        return folder.exists() and ((folder / DATABASE).exists() or not folder.is_dir() or _is_used(folder))
    except OSError:  # a folder that cannot be looked into
        return True


class KeysSeen(NamedTuple):
    """How many keys can be used, and whether a certain one is among them."""

    n_active: int
    is_known: bool


def keys_seen(folder: Path, secret: str, now: float) -> KeysSeen:
    """The keys of a database as it is, of an older version too; BadRequest where it cannot be read."""
    check_place(folder)
    database = folder / DATABASE
    if not _head(database):
        return KeysSeen(0, False)
    try:
        with _read_only(database) as connection:
            tables = _tables(connection)
            if "migrations" in tables:
                check_steps(database, connection.execute("SELECT max(number) FROM migrations").fetchone()[0] or 0)
            if "keys" not in tables:
                return KeysSeen(0, False)
            columns = [row[1] for row in connection.execute("PRAGMA table_info(keys)")]
            holds = "revoked IS NULL" + (" AND (expires IS NULL OR expires > :now)" if "expires" in columns else "")
            found = f"SELECT count(*), coalesce(sum(hash = :hash), 0) FROM keys WHERE {holds}"
            n_active, n_known = connection.execute(found, {"now": now, "hash": hash_of(secret)}).fetchone()
            return KeysSeen(n_active, n_known > 0)
    except sqlite3.Error as error:
        raise refusal(database, str(error)) from None


def open_lock(file: Path) -> IO[str]:
    """A file to lock; BadRequest where something else is in its place."""
    try:
        return file.open("w")
    except OSError as error:
        raise BadRequest(f"{file} cannot be opened: {error.strerror}. Delete it, or name another --data.") from None


def check_steps(database: Path, newest_step: int) -> None:
    """BadRequest where a newer version of the server has changed the tables in a way that this one does not know."""
    if newest_step > len(STEPS):
        raise BadRequest(
            f"{database} was made by a newer version of loreloop: it has taken step {newest_step} of the tables, this "
            f"version knows {len(STEPS)}. Install that version, or name another --data."
        )


def inspect_data(folder: Path) -> list[str]:
    """Everything that can be seen before a server starts; gives what its operator should be told.

    Reads the whole database once (`PRAGMA quick_check`); BadRequest where it is damaged.
    """
    check_place(folder)
    if (folder / SECRET).exists():
        read_secret(folder / SECRET)
    database = folder / DATABASE
    if not _head(database):
        return []  # a new one
    log_deleted = was_deleted(database)
    try:
        with _read_only(database) as connection:
            _check_pages(connection, database)
            # Only now, since SQLite must have read the log once for the index beside it to be up to date.
            lost = f"{database}-wal is missing, with what came in last." if log_deleted else lost_of_log(database)
            notes = [*_unlisted_checkpoints(connection, folder), *_unlisted_operations(connection, folder)]
            return [lost, *notes] if lost else notes
    except sqlite3.Error as error:
        raise refusal(database, str(error)) from None


@contextmanager
def _read_only(database: Path) -> Iterator[sqlite3.Connection]:
    """So that closing it does not fold a log that may be needed as it is."""
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
        connection.text_factory = lambda content: content.decode("utf-8", "replace")
        yield connection


def _check_pages(connection: sqlite3.Connection, database: Path) -> None:
    found = [str(problem) for (problem,) in connection.execute("PRAGMA quick_check(3)")]
    if found != ["ok"]:
        raise refusal(database, "; ".join(" ".join(problem.split()) for problem in found[:SHOWN]))
    if _tables(connection) & {"migrations"}:
        check_steps(database, connection.execute("SELECT max(number) FROM migrations").fetchone()[0] or 0)


def _unlisted_checkpoints(connection: sqlite3.Connection, folder: Path) -> Iterator[str]:
    """Checkpoints whose files are there and whose rows are not, unless a replay is about to write the row, or they were
    deleted and the sweeper is about to take the files."""
    if not {"checkpoints", "ops"} <= _tables(connection):
        return
    listed: set[tuple[str, ...]] = {
        (file_name(run_id), kind, name)
        for run_id, kind, name in connection.execute("SELECT run_id, kind, name FROM checkpoints")
    }
    if "left_files" in _tables(connection):  # else a database of an older version
        listed |= {Path(path).parts[-3:] for (path,) in connection.execute("SELECT path FROM left_files")}
    promised = {reply for (reply,) in connection.execute("SELECT reply FROM ops WHERE NOT done")}
    lost = [
        found
        for found in sorted(Files(folder).checkpoints.glob("*/*/*"))
        if found.is_dir() and not found.name.startswith(".") and found.parts[-3:] not in listed
    ]
    lost = [found for found in lost if not any(f"/{found.parts[-2]}/{found.name}" in reply for reply in promised)]
    if lost:
        yield (
            f"{len(lost)} checkpoints have files that the database does not know, so no client can name them: "
            f"{_some(lost)}. Each is a PEFT folder."
        )


def _unlisted_operations(connection: sqlite3.Connection, folder: Path) -> Iterator[str]:
    """Operations in the journal that came after the last one known. Rows are written in the order of the segments, so
    only what lies behind the last place that a row names is looked at. Their segments are kept from being swept. Those
    that were told before are told again only with new ones."""
    if not {"ops", "results", "spool", "runs"} <= _tables(connection):
        return
    # Bodies are appended in the order of their rows, so a body before the newest known place has lost nothing.
    last = max((location.segment, location.offset) for location in (Location(0, 0, 0), *_locations(connection)))
    ended = _ended_runs(connection)
    found: dict[str, str] = {}  # the runs of lost operations, by request
    segments: set[Path] = set()
    for path, location, body in records(folder / "journal", *last):
        op = _operation(body)
        known = op and connection.execute("SELECT 1 FROM ops WHERE request_id = ?", (op.request_id,)).fetchone()
        if op and not known and op.model_id not in ended and (location.segment, location.offset) != last:
            found[op.request_id] = op.model_id
            segments.add(path)
    if found.keys() - lost.reported(folder):
        places = [lost.keep(folder, path) for path in sorted(segments)]
        lost.note_found(folder, found)
        yield (
            "The journal holds training operations that the database does not know, of "
            f"{_some(sorted(set(found.values())))}: they came in at the moment in which the server ended, or the "
            f"database has lost them. They are not executed. Kept in {_some(places)}; if you do not need them, delete "
            f"{Files(folder).lost}."
        )


def _ended_runs(connection: sqlite3.Connection) -> set[str]:
    """Runs of which the database has forgotten operations on purpose, those that were deleted among them."""
    found = {run_id for (run_id,) in connection.execute("SELECT id FROM runs WHERE NOT live")}
    if "removed_runs" in _tables(connection):  # else a database of an older version
        found |= {run_id for (run_id,) in connection.execute("SELECT run_id FROM removed_runs")}
    return found


class _Operation(msgspec.Struct):
    request_id: str
    model_id: str


_OPERATION = msgspec.msgpack.Decoder(_Operation)


def _operation(body: bytes) -> _Operation | None:
    try:
        return _OPERATION.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # a result, a record of the spool, or damaged


def _locations(connection: sqlite3.Connection) -> Iterator[Location]:
    for table in ("ops", "results", "spool"):
        for (text,) in connection.execute(f"SELECT location FROM {table} WHERE location IS NOT NULL"):
            try:
                yield msgspec.json.decode(text, type=Location)
            except (msgspec.DecodeError, TypeError):
                continue  # whoever needs it hears so


def _is_used(folder: Path) -> bool:
    files = Files(folder)
    segments = any(path.stat().st_size for path in (folder / "journal").glob("*.seg"))
    return segments or any(files.snapshots.glob("**/*.*")) or any(files.checkpoints.glob("*/*/*"))


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _head(database: Path) -> bytes:
    if not database.exists():
        return b""
    with database.open("rb") as file:
        return file.read(len(MAGIC))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _some(items: list[str] | list[Path]) -> str:
    return ", ".join(map(str, items[:SHOWN])) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def refusal(database: Path, problem: str) -> BadRequest:
    """The error of a database that is damaged, with what can be done."""
    return BadRequest(
        f"The database {database} cannot be used: {problem}. Bring it back from a backup, or name another --data. The "
        "checkpoints beside it are PEFT folders of their own, which can be used without it."
    )

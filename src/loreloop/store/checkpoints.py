"""Checkpoints that exist: one row each, written after their files. Seen by the key that owns them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, delete, func, select, union_all, update
from sqlalchemy.dialects.sqlite import insert

from loreloop.protocol.checksums import SUMS_FILE
from loreloop.protocol.errors import BadRequest, Conflict, FilesGone, NotFound
from loreloop.protocol.paths import SCHEME, CheckpointKind, CheckpointPath
from loreloop.store.files import in_row, placed, set_aside
from loreloop.store.rows import CheckpointRow, Page
from loreloop.store.schema import CHECKPOINTS, DEPLOYED, LEFT_FILES, OPS, SAMPLERS, SESSIONS, SNAPSHOTS

LOG = logging.getLogger(__name__)
ADVICE = "Use another checkpoint, or bring its files back from a backup."
ACCEPT = "Where it was deleted on purpose, `loreloop checkpoints accept` notes the files as they are."


def add(connection: Connection, row: CheckpointRow) -> None:
    """Adds a checkpoint, in place of one of the same path."""
    values = msgspec.structs.asdict(row) | {
        "user_metadata": msgspec.json.encode(row.user_metadata).decode() if row.user_metadata else None,
        "kind": row.kind.value,
        "folder": in_row(row.folder),
    }
    connection.execute(delete(CHECKPOINTS).where(_has_path(row.path)))
    connection.execute(insert(CHECKPOINTS).values(**values))


def get(connection: Connection, key_id: str, path: CheckpointPath) -> CheckpointRow:
    """A checkpoint of this key; NotFound where it is another key's or there is none."""
    row = connection.execute(select(CHECKPOINTS).where(_has_path(path), CHECKPOINTS.c.key_id == key_id)).first()
    if row is None:
        raise NotFound(f"There is no checkpoint {path} of this key.")
    return _row(connection, row)


def of_anyone(connection: Connection, path: CheckpointPath) -> CheckpointRow:
    """For the operator of the server, who may name every key's checkpoints."""
    row = connection.execute(select(CHECKPOINTS).where(_has_path(path))).first()
    if row is None:
        raise NotFound(f"There is no checkpoint {path}.")
    return _row(connection, row)


def folder_of(row: CheckpointRow) -> Path:
    """Where a checkpoint's files lie; Gone where they do not, or have lost the list of their checksums."""
    folder = Path(row.folder)
    if not folder.is_dir():
        raise FilesGone(f"The files of {row.path} are gone: there is no folder {folder}. {ADVICE}")
    if row.sums_crc32 and not (folder / SUMS_FILE).exists():
        raise FilesGone(
            f"{folder / SUMS_FILE} is gone, so nothing tells whether {row.path} is damaged. {ADVICE} {ACCEPT}"
        )
    return folder


@contextmanager
def linking() -> Iterator[None]:
    """FilesGone where files go away while they are linked, since their checkpoint is being deleted."""
    try:
        yield
    except FileNotFoundError as error:
        raise FilesGone(f"{error.filename} cannot be read ({error.strerror}). {ADVICE}") from None


def check_free(connection: Connection, path: CheckpointPath) -> None:
    """BadRequest if a checkpoint of this path exists."""
    if connection.execute(select(CHECKPOINTS.c.name).where(_has_path(path))).first():
        replace = (
            'call save_state(name, overwrite=True) to replace it (in JSON, "overwrite": true)'
            if path.kind is CheckpointKind.TRAINING
            else "delete it first, since what can be sampled from or downloaded never changes"
        )
        raise BadRequest(f"The checkpoint {path} exists already; choose another name, or {replace}.")


def of_run(connection: Connection, key_id: str, run_id: str) -> list[CheckpointRow]:
    """All checkpoints of a run, the newest first."""
    query = _owned_by(key_id).where(CHECKPOINTS.c.run_id == run_id)
    return [_row(connection, row) for row in connection.execute(query.order_by(CHECKPOINTS.c.created.desc()))]


def list_page(connection: Connection, key_id: str, limit: int, offset: int) -> Page[CheckpointRow]:
    """Checkpoints of this key, the newest first; `limit` of them behind the first `offset`."""
    owned_checkpoints = _owned_by(key_id)
    total = connection.scalar(select(func.count()).select_from(owned_checkpoints.subquery())) or 0
    rows = connection.execute(owned_checkpoints.order_by(CHECKPOINTS.c.created.desc()).limit(limit).offset(offset))
    return Page([_row(connection, row) for row in rows], total)


def newest_of_run(connection: Connection, run_id: str, kind: CheckpointKind) -> CheckpointRow | None:
    """The newest checkpoint of one kind that a run has, whoever owns it, or None."""
    of_kind = select(CHECKPOINTS).where(CHECKPOINTS.c.run_id == run_id, CHECKPOINTS.c.kind == kind.value)
    row = connection.execute(of_kind.order_by(CHECKPOINTS.c.created.desc()).limit(1)).first()
    return _row(connection, row) if row else None


def newest(connection: Connection, key_id: str, kind: CheckpointKind, limit: int) -> list[CheckpointRow]:
    """The newest checkpoints of one kind that a key has, `limit` of them."""
    of_kind = _owned_by(key_id).where(CHECKPOINTS.c.kind == kind.value)
    rows = connection.execute(of_kind.order_by(CHECKPOINTS.c.created.desc()).limit(limit))
    return [_row(connection, row) for row in rows]


def remove(connection: Connection, key_id: str, path: CheckpointPath) -> CheckpointRow:
    """Takes the row away and leaves the files to `take_left_files`: until these are taken, a checkpoint of the same
    name may be saved there. Conflict while a deployment needs them."""
    row = get(connection, key_id, path)
    check_not_deployed(connection, path)
    connection.execute(delete(CHECKPOINTS).where(_has_path(path)))
    leave_files(connection, [row.folder])
    return row


def leave_files(connection: Connection, paths: Iterable[str]) -> None:
    """Notes files that nothing needs from now on. Whoever asked deletes them at once; if it is killed before it has,
    the sweeper does."""
    if left := [{"path": in_row(path)} for path in paths]:
        connection.execute(insert(LEFT_FILES).on_conflict_do_nothing(), left)


def take_left_files(connection: Connection) -> list[Path]:
    """Takes what was left and is still there out of everybody's sight, and gives it to be deleted.

    In a transaction of its own on the writer's thread, so that nothing becomes known meanwhile, and nothing that it
    goes by is undone afterwards. What has a row again stays, and what an operation
    is about to write stays until that has ended. So does what cannot be renamed just now.
    """
    left = connection.scalars(select(LEFT_FILES.c.path)).all()
    if not left:
        return []
    # An operation that is still running will write its row only when it ends. Its files are on their way and must not
    # be taken for leftovers.
    effects = "\n".join(connection.scalars(select(OPS.c.after).where(~OPS.c.done, OPS.c.after != "[]")))
    needed, taken, settled = _needed(connection), [], []
    for path in (path for path in left if f'{path}"' not in effects):
        try:
            # The name goes in this transaction and the bytes later: deleting a large folder here would hold up every
            # writer.
            aside = None if path in needed else set_aside(Path(placed(connection, path)))
        except OSError as error:
            LOG.warning("%s is not needed and cannot be deleted yet: %s", path, error.strerror)
            continue
        taken += [aside] if aside else []
        settled.append({"left": path})
    if settled:
        connection.execute(delete(LEFT_FILES).where(LEFT_FILES.c.path == bindparam("left")), settled)
    return taken


def _needed(connection: Connection) -> set[str]:
    """What was left and has a row again; looked up all at once, since a session may leave very much."""
    # Ephemeral samplers own their folders only as long as their session lives.
    in_session = SAMPLERS.c.run_id.is_not(None) & (SESSIONS.c.id == SAMPLERS.c.session_id)
    of_samplers = select(SAMPLERS.c.folder).where(in_session, SESSIONS.c.status == "active")
    rows = union_all(select(CHECKPOINTS.c.folder), of_samplers, select(SNAPSHOTS.c.file)).subquery()
    return set(connection.scalars(select(LEFT_FILES.c.path).where(LEFT_FILES.c.path.in_(select(rows.c.folder)))))


def check_not_deployed(connection: Connection, path: CheckpointPath) -> None:
    """Conflict while a deployment answers with the checkpoint."""
    deployed = connection.scalars(select(DEPLOYED.c.name).where(DEPLOYED.c.target == str(path)).limit(4)).all()
    if deployed:
        names = ", ".join(deployed[:3]) + (", …" if len(deployed) > 3 else "")
        raise Conflict(
            f"{path} is what the deployment {names} answers with; let it answer with something else "
            "(`loreloop deploy set`), or `loreloop deploy delete` it, then delete the checkpoint."
        )


def set_expiry(connection: Connection, key_id: str, path: CheckpointPath, expires: float | None) -> None:
    """Changes when a checkpoint is deleted, in seconds since the epoch; None keeps it for good. NotFound where there
    is none."""
    get(connection, key_id, path)
    connection.execute(update(CHECKPOINTS).where(_has_path(path)).values(expires=expires))


def set_sum(connection: Connection, path: CheckpointPath, n_bytes: int, sums_crc32: str | None) -> None:
    """The files of a checkpoint are other ones from now on. Nothing changes where there is none."""
    values = {"size_bytes": n_bytes, "sums_crc32": sums_crc32}
    connection.execute(update(CHECKPOINTS).where(_has_path(path)).values(**values))


def expired(connection: Connection, now: float) -> list[CheckpointRow]:
    """Those whose time is over; what a deployment answers with stays until it no longer does."""
    # A deployment outlives the expiry of what it answers with; the checkpoint expires when the deployment moves on.
    over = select(CHECKPOINTS).where(CHECKPOINTS.c.expires <= now, ~_is_deployed())
    return [_row(connection, row) for row in connection.execute(over)]


def next_expiry(connection: Connection) -> float | None:
    """When the next checkpoint expires, so that the sweeper can sleep until then. Deployed ones do not count."""
    with_expiry = select(CHECKPOINTS.c.expires).where(CHECKPOINTS.c.expires.is_not(None), ~_is_deployed())
    return connection.scalar(with_expiry.order_by(CHECKPOINTS.c.expires).limit(1))


def _has_path(path: CheckpointPath):  # type: ignore[no-untyped-def]
    table = CHECKPOINTS.c
    return (table.run_id == path.run_id) & (table.kind == path.kind.value) & (table.name == path.name)


def _is_deployed() -> ColumnElement[bool]:
    table = CHECKPOINTS.c
    # Built in SQL from the columns, since the deployments' table holds whole paths.
    path = SCHEME + table.run_id + "/" + table.kind + "/" + table.name
    return select(DEPLOYED.c.name).where(DEPLOYED.c.target == path).exists()


def _owned_by(key_id: str) -> Select[tuple[object, ...]]:
    return select(CHECKPOINTS).where(CHECKPOINTS.c.key_id == key_id)


def _row(connection: Connection, row: Row[tuple[object, ...]]) -> CheckpointRow:
    metadata = msgspec.json.decode(row.user_metadata) if row.user_metadata else None
    return CheckpointRow(
        run_id=row.run_id,
        kind=CheckpointKind(row.kind),
        name=row.name,
        key_id=row.key_id,
        folder=placed(connection, row.folder),
        created=row.created,
        size_bytes=row.size_bytes,
        expires=row.expires,
        user_metadata=metadata,
        sums_crc32=row.sums_crc32,
        public=bool(row.public),
    )

"""Checkpoints that exist: one row each, written after their files. Seen by the key that owns them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, delete, func, insert, select, update

from loreloop.protocol.checksums import SUMS_FILE
from loreloop.protocol.errors import BadRequest, Conflict, Gone, NotFound
from loreloop.protocol.paths import SCHEME, CheckpointKind, CheckpointPath
from loreloop.store.rows import CheckpointRow, Page
from loreloop.store.schema import CHECKPOINTS, DEPLOYED

ADVICE = "Use another checkpoint, or bring its files back from a backup."


def add(connection: Connection, row: CheckpointRow) -> None:
    """Adds a checkpoint, in place of one of the same path."""
    values = msgspec.structs.asdict(row) | {
        "user_metadata": msgspec.json.encode(row.user_metadata).decode() if row.user_metadata else None,
        "kind": row.kind.value,
    }
    connection.execute(delete(CHECKPOINTS).where(_at(row.path)))
    connection.execute(insert(CHECKPOINTS).values(**values))


def get(connection: Connection, key_id: str, path: CheckpointPath) -> CheckpointRow:
    row = connection.execute(select(CHECKPOINTS).where(_at(path), CHECKPOINTS.c.key_id == key_id)).first()
    if row is None:
        raise NotFound(f"There is no checkpoint {path} of this key.")
    return _row(row)


def of_anyone(connection: Connection, path: CheckpointPath) -> CheckpointRow:
    """For the operator of the server, who may name every key's checkpoints."""
    row = connection.execute(select(CHECKPOINTS).where(_at(path))).first()
    if row is None:
        raise NotFound(f"There is no checkpoint {path}.")
    return _row(row)


def folder_of(row: CheckpointRow) -> Path:
    """Where a checkpoint's files lie; Gone where they do not, or have lost the list of their checksums."""
    folder = Path(row.folder)
    if not folder.is_dir():
        raise Gone(f"The files of {row.path} are gone: there is no folder {folder}. {ADVICE}")
    if row.sums_crc32 and not (folder / SUMS_FILE).exists():
        raise Gone(f"{folder / SUMS_FILE} is gone, so nothing tells whether {row.path} is damaged. {ADVICE}")
    return folder


def check_free(connection: Connection, path: CheckpointPath) -> None:
    """BadRequest if a checkpoint of this path exists."""
    if connection.execute(select(CHECKPOINTS.c.name).where(_at(path))).first():
        replace = (
            'call save_state(name, overwrite=True) to replace it (in JSON, "overwrite": true)'
            if path.kind is CheckpointKind.TRAINING
            else "delete it first, since what can be sampled from or downloaded never changes"
        )
        raise BadRequest(f"The checkpoint {path} exists already; choose another name, or {replace}.")


def of_run(connection: Connection, key_id: str, run_id: str) -> list[CheckpointRow]:
    query = _mine(key_id).where(CHECKPOINTS.c.run_id == run_id)
    return [_row(row) for row in connection.execute(query.order_by(CHECKPOINTS.c.created.desc()))]


def list_page(connection: Connection, key_id: str, limit: int, offset: int) -> Page[CheckpointRow]:
    mine = _mine(key_id)
    total = connection.scalar(select(func.count()).select_from(mine.subquery())) or 0
    rows = connection.execute(mine.order_by(CHECKPOINTS.c.created.desc()).limit(limit).offset(offset))
    return Page([_row(row) for row in rows], total)


def newest_of_run(connection: Connection, run_id: str, kind: CheckpointKind) -> CheckpointRow | None:
    of_kind = select(CHECKPOINTS).where(CHECKPOINTS.c.run_id == run_id, CHECKPOINTS.c.kind == kind.value)
    row = connection.execute(of_kind.order_by(CHECKPOINTS.c.created.desc()).limit(1)).first()
    return _row(row) if row else None


def newest(connection: Connection, key_id: str, kind: CheckpointKind, limit: int) -> list[CheckpointRow]:
    of_kind = _mine(key_id).where(CHECKPOINTS.c.kind == kind.value)
    return [_row(row) for row in connection.execute(of_kind.order_by(CHECKPOINTS.c.created.desc()).limit(limit))]


def remove(connection: Connection, key_id: str, path: CheckpointPath) -> CheckpointRow:
    """Takes the row away; the files are the caller's to delete afterwards. Conflict while a deployment needs them."""
    row = get(connection, key_id, path)
    check_not_deployed(connection, path)
    connection.execute(delete(CHECKPOINTS).where(_at(path)))
    return row


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
    get(connection, key_id, path)
    connection.execute(update(CHECKPOINTS).where(_at(path)).values(expires=expires))


def expired(connection: Connection, now: float) -> list[CheckpointRow]:
    """Those whose time is over; what a deployment answers with stays until it no longer does."""
    over = select(CHECKPOINTS).where(CHECKPOINTS.c.expires <= now, ~_is_deployed())
    return [_row(row) for row in connection.execute(over)]


def next_expiry(connection: Connection) -> float | None:
    with_expiry = select(CHECKPOINTS.c.expires).where(CHECKPOINTS.c.expires.is_not(None), ~_is_deployed())
    return connection.scalar(with_expiry.order_by(CHECKPOINTS.c.expires).limit(1))


def _at(path: CheckpointPath):  # type: ignore[no-untyped-def]
    table = CHECKPOINTS.c
    return (table.run_id == path.run_id) & (table.kind == path.kind.value) & (table.name == path.name)


def _is_deployed() -> ColumnElement[bool]:
    table = CHECKPOINTS.c
    path = SCHEME + table.run_id + "/" + table.kind + "/" + table.name
    return select(DEPLOYED.c.name).where(DEPLOYED.c.target == path).exists()


def _mine(key_id: str) -> Select[tuple[object, ...]]:
    return select(CHECKPOINTS).where(CHECKPOINTS.c.key_id == key_id)


def _row(row: Row[tuple[object, ...]]) -> CheckpointRow:
    metadata = msgspec.json.decode(row.user_metadata) if row.user_metadata else None
    return CheckpointRow(
        run_id=row.run_id,
        kind=CheckpointKind(row.kind),
        name=row.name,
        key_id=row.key_id,
        folder=row.folder,
        created=row.created,
        size_bytes=row.size_bytes,
        expires=row.expires,
        user_metadata=metadata,
        sums_crc32=row.sums_crc32,
    )

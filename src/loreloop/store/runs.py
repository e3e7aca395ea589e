"""Training runs, seen by the key that owns them."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, Row, func, select, update
from sqlalchemy.dialects.sqlite import insert

from loreloop.protocol.errors import NotFound
from loreloop.protocol.training import LoraSpec
from loreloop.store import sessions
from loreloop.store.rows import Page, RunRow
from loreloop.store.schema import RUNS, SESSIONS


def create(connection: Connection, run: RunRow) -> None:
    """Adds a run; a repeated call for the same id changes nothing."""
    values = msgspec.structs.asdict(run) | {
        "lora": msgspec.json.encode(run.lora).decode(),
        "user_metadata": msgspec.json.encode(run.user_metadata).decode() if run.user_metadata else None,
    }
    connection.execute(insert(RUNS).values(**values).on_conflict_do_nothing())


def get(connection: Connection, key_id: str, run_id: str) -> RunRow:
    """A run of this key; NotFound where it is another key's or there is none."""
    row = connection.execute(select(RUNS).where(RUNS.c.id == run_id, RUNS.c.key_id == key_id)).first()
    if row is None:
        raise NotFound(f"There is no training run {run_id!r} of this key.")
    return _row(row)


def of_anyone(connection: Connection, run_id: str) -> RunRow:
    """A run whoever owns it, for what may be read of others' weights."""
    row = connection.execute(select(RUNS).where(RUNS.c.id == run_id)).first()
    if row is None:
        raise NotFound(f"There is no training run {run_id!r} of this key.")
    return _row(row)


def list_page(
    connection: Connection, key_id: str, limit: int, offset: int, project_id: str | None = None
) -> Page[RunRow]:
    """Runs of this key, or of one project of it, the newest first; `limit` of them behind the first `offset`."""
    owned_runs = select(RUNS).where(RUNS.c.key_id == key_id)
    if project_id is not None:
        of_project = select(SESSIONS.c.id).where(sessions.project() == project_id)
        owned_runs = owned_runs.where(RUNS.c.session_id.in_(of_project))
    total = connection.scalar(select(func.count()).select_from(owned_runs.subquery())) or 0
    rows = connection.execute(owned_runs.order_by(RUNS.c.created.desc()).limit(limit).offset(offset))
    return Page([_row(row) for row in rows], total)


def of_session(connection: Connection, session_id: str) -> list[RunRow]:
    """All runs that a session has begun, those that have ended among them."""
    return [_row(row) for row in connection.execute(select(RUNS).where(RUNS.c.session_id == session_id))]


def n_live(connection: Connection, key_id: str) -> int:
    """How many of a key's runs are live, that is, can still be trained; a limit bounds them."""
    live = select(func.count()).select_from(RUNS).where(RUNS.c.key_id == key_id, RUNS.c.live)
    return connection.scalar(live) or 0


def touch(connection: Connection, run_id: str, now: float) -> None:
    """Notes when a run had its last request, which listings show."""
    connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(last_request=now))


def orphaned_sessions(connection: Connection) -> list[str]:
    """Sessions that have ended and left runs live: their closing was cut short."""
    ended = select(SESSIONS.c.id).where(SESSIONS.c.status != "active")
    left_live = select(RUNS.c.session_id).where(RUNS.c.live, RUNS.c.session_id.in_(ended))
    return list(connection.scalars(left_live.distinct()))


def set_dead(connection: Connection, run_id: str) -> None:
    """Its session has ended; checkpoints stay, the live state does not."""
    connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(live=False))


def set_lost(connection: Connection, run_id: str, reason: str) -> None:
    """Its state could not be restored; what was saved of it stays."""
    connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(live=False, lost=reason))


def _row(row: Row[tuple[object, ...]]) -> RunRow:
    metadata = msgspec.json.decode(row.user_metadata) if row.user_metadata else None
    lora = msgspec.json.decode(row.lora, type=LoraSpec)
    return RunRow(
        id=row.id,
        session_id=row.session_id,
        key_id=row.key_id,
        base_model=row.base_model,
        lora=lora,
        created=row.created,
        last_request=row.last_request,
        user_metadata=metadata,
        live=row.live,
        lost=row.lost,
    )

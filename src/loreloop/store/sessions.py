"""Sessions of clients, seen by the key that opened them: opened, kept alive, ended."""

from __future__ import annotations

import uuid

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, func, insert, select, update

from loreloop.protocol.errors import NotFound
from loreloop.protocol.paths import file_name
from loreloop.store import checkpoints
from loreloop.store.files import placed
from loreloop.store.rows import Page, SessionNew, SessionRow, SessionStatus
from loreloop.store.schema import SAMPLERS, SESSIONS

PROJECT = "default"  # of sessions that name none


def project() -> ColumnElement[str]:
    """The project of a session, in a query: one that is named `default` is that of sessions that name none."""
    return func.coalesce(func.nullif(SESSIONS.c.project_id, ""), PROJECT)


def create(connection: Connection, key_id: str, new: SessionNew, now: float, session_id: str | None = None) -> str:
    """Opens a session, under an id of its own unless one is given; gives its id."""
    session_id = session_id or str(uuid.uuid4())
    values = msgspec.structs.asdict(new) | {
        "tags": msgspec.json.encode(new.tags).decode(),
        "user_metadata": msgspec.json.encode(new.user_metadata).decode() if new.user_metadata else None,
    }
    connection.execute(
        insert(SESSIONS).values(id=session_id, key_id=key_id, created=now, last_seen=now, status="active", **values)
    )
    return session_id


def create_ended(connection: Connection, key_id: str, new: SessionNew, now: float, session_id: str) -> None:
    """A session that never lived, for what belongs to one by its rows alone; once, however often it is asked for."""
    if connection.execute(select(SESSIONS.c.id).where(SESSIONS.c.id == session_id)).first() is None:
        create(connection, key_id, new, now, session_id)
        connection.execute(update(SESSIONS).where(SESSIONS.c.id == session_id).values(status="finished"))


def get(connection: Connection, key_id: str, session_id: str) -> SessionRow:
    """A session of this key; NotFound where it is another key's or there is none."""
    row = connection.execute(_owned_session(key_id, session_id)).first()
    if row is None:
        raise NotFound(f"There is no session {session_id!r} of this key; create one first.")
    return _row(row)


def list_page(connection: Connection, key_id: str, limit: int, offset: int) -> Page[SessionRow]:
    """Sessions of this key, the newest first; `limit` of them behind the first `offset`."""
    owned_sessions = select(SESSIONS).where(SESSIONS.c.key_id == key_id)
    total = connection.scalar(select(func.count()).select_from(owned_sessions.subquery())) or 0
    rows = connection.execute(owned_sessions.order_by(SESSIONS.c.created.desc()).limit(limit).offset(offset))
    return Page([_row(row) for row in rows], total)


def touch(connection: Connection, key_id: str, session_id: str, now: float) -> SessionStatus:
    """Notes a sign of life; gives the status, which no sign of life changes back."""
    session = get(connection, key_id, session_id)
    if session.status == "active":
        connection.execute(update(SESSIONS).where(SESSIONS.c.id == session_id).values(last_seen=now))
    return session.status


def end(connection: Connection, key_id: str, session_id: str, status: SessionStatus, detail: str | None) -> bool:
    """Ends an active session; False if it had ended before (the first reason stays)."""
    get(connection, key_id, session_id)
    # One statement decides between a client that finishes and a sweeper that expires the session in the same moment.
    active = update(SESSIONS).where(SESSIONS.c.id == session_id, SESSIONS.c.status == "active")
    ended = bool(connection.execute(active.values(status=status, detail=detail)).rowcount)
    checkpoints.leave_files(connection, revisions_of(connection, session_id) if ended else [])
    return ended


def revisions_of(connection: Connection, session_id: str) -> list[str]:
    """The folders of a session's ephemeral samplers, those that in-flight ones have moved on from among them."""
    ephemeral = select(SAMPLERS.c.id).where(SAMPLERS.c.session_id == session_id, SAMPLERS.c.run_id.is_not(None))
    return [placed(connection, f"revisions/{file_name(each)}") for each in connection.scalars(ephemeral)]


def active_since_before(connection: Connection, moment: float) -> list[SessionRow]:
    """Active sessions without a sign of life since `moment`."""
    return [
        _row(row)
        for row in connection.execute(
            select(SESSIONS).where(SESSIONS.c.status == "active", SESSIONS.c.last_seen < moment)
        )
    ]


def oldest_sign_of_life(connection: Connection) -> float | None:
    """When the active session that has been silent for longest was last heard; None where none is active."""
    return connection.scalar(select(func.min(SESSIONS.c.last_seen)).where(SESSIONS.c.status == "active"))


def renew_all(connection: Connection, now: float) -> None:
    """After a time when the server could not hear anybody."""
    connection.execute(update(SESSIONS).where(SESSIONS.c.status == "active").values(last_seen=now))


def _owned_session(key_id: str, session_id: str):  # type: ignore[no-untyped-def]
    return select(SESSIONS).where(SESSIONS.c.id == session_id, SESSIONS.c.key_id == key_id)


def _row(row: Row[tuple[object, ...]]) -> SessionRow:
    metadata = msgspec.json.decode(row.user_metadata) if row.user_metadata else None
    tags = msgspec.json.decode(row.tags, type=tuple[str, ...])
    new = SessionNew(tags, metadata, row.sdk_version, row.project_id, row.display_name)
    return SessionRow(
        id=row.id, key_id=row.key_id, created=row.created, last_seen=row.last_seen, status=row.status, new=new
    )

"""Sessions looked for by what their clients have said of them, the newest first; moved between projects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, false, func, or_, select, true, update

from loreloop.store import sessions
from loreloop.store.schema import CHECKPOINTS, RUNS, SESSIONS


class Wanted(msgspec.Struct, frozen=True):
    """Which sessions: of these keys (None: of all), in these projects, alike in every respect that is named. A session
    matches `session_id` or `display_name`, where both are given."""

    key_ids: tuple[str, ...] | None = None
    session_id: str | None = None
    display_name: str | None = None
    project_ids: tuple[str, ...] | None = None
    user_metadata: dict[str, str] = {}
    statuses: tuple[str, ...] | None = None  # `active`, or `client_finished` with or without `:<reason>`


class SessionSummary(msgspec.Struct, frozen=True):
    """A session as a search shows it; `detail` is how it ended, in its client's words."""

    id: str
    key_id: str
    created: float
    status: str
    detail: str | None
    project_id: str
    display_name: str | None
    user_metadata: dict[str, Any] | None
    n_checkpoints: int
    size_bytes: int


def search(connection: Connection, wanted: Wanted, limit: int, after: str | None) -> list[SessionSummary]:
    """At most `limit` sessions, those behind the session `after`."""
    saved = (
        select(func.count(), func.coalesce(func.sum(CHECKPOINTS.c.size_bytes), 0))
        .select_from(CHECKPOINTS.join(RUNS, RUNS.c.id == CHECKPOINTS.c.run_id))
        .correlate(SESSIONS)
    )
    query = select(SESSIONS).where(_matches(wanted))
    if after is not None:
        # The moment is taken from the row: as the client brings it, it may be rounded. Another key's session gives
        # none, as one that there is not.
        last = select(SESSIONS.c.created).where(SESSIONS.c.id == after, _of_keys(wanted)).scalar_subquery()
        older = or_(SESSIONS.c.created < last, and_(SESSIONS.c.created == last, SESSIONS.c.id < after))
        query = query.where(older)
    query = query.order_by(SESSIONS.c.created.desc(), SESSIONS.c.id.desc()).limit(limit)
    found = []
    for row in connection.execute(query).all():
        n_checkpoints, size_bytes = connection.execute(saved.where(RUNS.c.session_id == row.id)).one()
        found.append(
            SessionSummary(
                id=row.id,
                key_id=row.key_id,
                created=row.created,
                status=row.status,
                detail=row.detail,
                project_id=row.project_id or sessions.PROJECT,
                display_name=row.display_name,
                user_metadata=msgspec.json.decode(row.user_metadata) if row.user_metadata else None,
                n_checkpoints=n_checkpoints,
                size_bytes=size_bytes,
            )
        )
    return found


def set_project(connection: Connection, key_id: str, session_id: str, project_id: str) -> None:
    """Moves a session of the key, with its runs, to a project; NotFound where the key has none of this id."""
    sessions.get(connection, key_id, session_id)
    connection.execute(update(SESSIONS).where(SESSIONS.c.id == session_id).values(project_id=project_id))


def _matches(wanted: Wanted) -> ColumnElement[bool]:
    table = SESSIONS.c
    named: list[ColumnElement[bool]] = []
    if wanted.session_id is not None:
        named.append(table.id == wanted.session_id)
    if wanted.display_name is not None:
        words = wanted.display_name.split()
        named.append(and_(true(), *(table.display_name.icontains(word, autoescape=True) for word in words)))
    conditions = [or_(*named)] if named else []
    conditions.append(_of_keys(wanted))
    if wanted.project_ids is not None:
        conditions.append(sessions.project().in_(wanted.project_ids))
    for name, value in wanted.user_metadata.items():
        # By pairs and not by a path, in which a name could mean something else.
        pair = func.json_each(table.user_metadata).table_valued("key", "value")
        conditions.append(select(pair.c.key).where(pair.c.key == name, pair.c.value == value).exists())
    if wanted.statuses is not None:
        conditions.append(or_(false(), *(_has_status(status) for status in wanted.statuses)))
    return and_(true(), *conditions)


def _of_keys(wanted: Wanted) -> ColumnElement[bool]:
    return true() if wanted.key_ids is None else SESSIONS.c.key_id.in_(wanted.key_ids)


def _has_status(status: str) -> ColumnElement[bool]:
    table, (kind, _, reason) = SESSIONS.c, status.partition(":")
    if kind == "active":
        return table.status == "active"
    if kind != "client_finished":
        return false()  # sessions are neither cancelled nor failed here
    finished = table.status == "finished"
    return finished & or_(table.detail == reason, table.detail.startswith(f"{reason}: ")) if reason else finished


def ids_page(connection: Connection, key_ids: Sequence[str] | None, limit: int, offset: int) -> list[str]:
    """Ids of sessions of these keys (None: of all), the newest first; `limit` of them behind the first `offset`."""
    query = select(SESSIONS.c.id).order_by(SESSIONS.c.created.desc(), SESSIONS.c.id.desc())
    if key_ids is not None:
        query = query.where(SESSIONS.c.key_id.in_(key_ids))
    return list(connection.scalars(query.limit(limit).offset(offset)))

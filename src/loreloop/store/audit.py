"""Who did what to checkpoints, keys and sessions: appended, read by the day. Neither prompts nor secrets are in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import msgspec
from sqlalchemy import Connection, delete, insert, select

from loreloop.store.account_rows import AuditEntry
from loreloop.store.account_tables import AUDIT

P = ParamSpec("P")
T = TypeVar("T")
KEPT_DAYS = 400
VISIT_END, LONGEST_VISIT_SECONDS = "visit_end", 86400.0  # of the pages


def note(connection: Connection, entry: AuditEntry) -> None:
    """Appends an entry."""
    values = msgspec.structs.asdict(entry) | {"details": msgspec.json.encode(entry.details).decode()}
    connection.execute(insert(AUDIT).values(**values))


def noting(
    connection: Connection,
    entry: AuditEntry,
    function: Callable[Concatenate[Connection, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """What a function of the store gives, with an entry in the same transaction: neither is there without the other."""
    result = function(connection, *args, **kwargs)
    note(connection, entry)
    return result


def between(connection: Connection, first: float, end: float, thing: str | None) -> list[AuditEntry]:
    """Entries from a moment on, before another one, in their order; with `thing` only those of its events."""
    table = AUDIT.c
    query = select(AUDIT).where(table.created >= first, table.created < end).order_by(table.number)
    if thing is not None:
        query = query.where(table.event.startswith(f"{thing}_", autoescape=True))
    return [
        AuditEntry(row.created, row.event, row.key_id, msgspec.json.decode(row.details))
        for row in connection.execute(query)
    ]


def ended_visits(connection: Connection, now: float) -> dict[str, int]:
    """Visits of pages that were ended before their time, by their nonces, with when that would have come."""
    table = AUDIT.c
    query = select(AUDIT).where(table.created >= now - LONGEST_VISIT_SECONDS, table.event == VISIT_END)
    found = [msgspec.json.decode(row.details) for row in connection.execute(query)]
    return {each["nonce"]: each["expires"] for each in found if each["expires"] > now}


def sweep(connection: Connection, now: float) -> None:
    """Forgets entries that are older than the log is kept."""
    connection.execute(delete(AUDIT).where(AUDIT.c.created < now - KEPT_DAYS * 86400))

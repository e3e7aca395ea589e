"""Who is at the command line, and what the audit log says of their doings. Knows no server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection


def operator() -> str:
    """Who is at the command line, for the history."""
    import os

    return os.environ.get("USER") or f"user {os.getuid()}"


def note(connection: Connection, event: str, key_id: str, **details: str) -> None:
    """An entry of the audit log about what is done at the command line, where no key is asked for: `key_id` is whose
    thing it is done to, empty where it is nobody's."""
    import time

    from loreloop.store import audit
    from loreloop.store.account_rows import AuditEntry

    audit.note(connection, AuditEntry(time.time(), event, key_id, {**details, "by": operator()}))

"""Entries of the audit log about checkpoints: what a key did with its own ones, and that it read another key's."""

from __future__ import annotations

from starlette.requests import Request

from loreloop.http.services import NotedRead, now, services
from loreloop.protocol.paths import CheckpointPath
from loreloop.store import audit
from loreloop.store.account_rows import AuditEntry
from loreloop.store.rows import CheckpointRow, KeyRow

DAY_SECONDS = 86400
MOST_NOTED = 10_000  # reads that are remembered, so that they are not written down again


def entry_of(event: str, key: KeyRow, path: CheckpointPath, **details: str) -> AuditEntry:
    """An entry about a checkpoint, of now."""
    return AuditEntry(now(), event, key.id, {"tinker_path": str(path), "key_name": key.name, **details})


async def note_read(request: Request, key: KeyRow, row: CheckpointRow, purpose: str) -> None:
    """An entry where a key reads what is another's."""
    if row.key_id != key.id:
        entry = entry_of("checkpoint_read", key, row.path, owner=row.key_id, purpose=purpose)
        await services(request).store.write(audit.note, entry)


async def note_daily_read(request: Request, key: KeyRow, row: CheckpointRow, purpose: str) -> None:
    """An entry for the first of a day's reads, where each request is one and a write for each would hold all up."""
    noted = services(request).noted_reads
    read = NotedRead(key.id, row.path, purpose, int(now() // DAY_SECONDS))
    if read in noted:
        return
    await note_read(request, key, row, purpose)
    # To forget costs no more than a second entry of the same day.
    if len(noted) >= MOST_NOTED:
        noted.clear()
    noted.add(read)

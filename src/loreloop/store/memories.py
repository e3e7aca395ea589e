"""Memories of conversations, each of a key and a user of it: bytes with a revision, of which one of two writers is
refused. Bounded for every key in number and bytes. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import time

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import BadRequest, Conflict, TooLarge
from loreloop.protocol.memories import Saved, first_revision, told_conflict
from loreloop.store.deleted import Begun, was_deleted_since
from loreloop.store.rows import MemoryName, MemoryRow, Page
from loreloop.store.schema import KEYS, MEMORIES
from loreloop.store.store import Store

LONGEST_NAME = 200  # characters of an id, and of a user


class Bounds(msgspec.Struct, frozen=True):
    """Nothing is thrown away to make room, since a memory is not made again as a cache is: what is over is refused."""

    bytes_of_one: int = 4 << 20
    bytes_of_key: int = 256 << 20
    memories_of_key: int = 10_000


BOUNDS = Bounds()


def load(connection: Connection, name: MemoryName) -> Saved | None:
    """The bytes and the revision of a memory, or None where there is none of this name."""
    row = connection.execute(select(MEMORIES.c.data, MEMORIES.c.revision).where(*_is(name))).first()
    return None if row is None else Saved(row.data, row.revision)


def save(connection: Connection, name: MemoryName, new: Saved, now: float, bounds: Bounds = BOUNDS) -> Saved:
    """`new.revision` is the one that the writer goes on from, 0 for a memory that is not there yet.

    Conflict where another one is stored; BadRequest for a name that is none; TooLarge for what is over the bounds.
    """
    check_name(name)
    row = connection.execute(select(MEMORIES.c.revision, MEMORIES.c.n_bytes).where(*_is(name))).first()
    stored, old_bytes = (row.revision, row.n_bytes) if row is not None else (0, 0)
    if stored != new.revision:
        raise Conflict(told_conflict(name.id, new.revision, stored))
    _check_size(name, len(new.data), bounds)
    if len(new.data) > old_bytes:
        _check_room(connection, name, len(new.data) - old_bytes, bounds, is_new=row is None)
    values = {"data": new.data, "n_bytes": len(new.data), "saved": now}
    if stored:
        connection.execute(update(MEMORIES).where(*_is(name)).values(revision=stored + 1, **values))
        return Saved(new.data, stored + 1)
    revision = first_revision()
    connection.execute(
        insert(MEMORIES).values(**msgspec.structs.asdict(name), revision=revision, created=now, **values)
    )
    return Saved(new.data, revision)


def save_begun(connection: Connection, name: MemoryName, new: Saved, began: float, bounds: Bounds) -> Saved:
    """As `save`, of a turn that began then; Conflict where the user was deleted meanwhile."""
    if was_deleted_since(connection, Begun(Person(name.key_id, name.user), began)):
        raise Conflict(f"The user {name.user[:80]!r} was deleted while the answer came, and nothing of it is kept.")
    return save(connection, name, new, time.time(), bounds)


def remove(connection: Connection, name: MemoryName) -> bool:
    """Whether there was one."""
    return bool(connection.execute(delete(MEMORIES).where(*_is(name))).rowcount)


def list_page(connection: Connection, key_id: str, user: str | None, limit: int, offset: int) -> Page[MemoryRow]:
    """Those of one user of a key, with None of all its users; what was saved last comes first."""
    at = MEMORIES.c
    asked = [at.key_id == key_id] if user is None else [at.key_id == key_id, at.user == user]
    total = connection.scalar(select(func.count()).select_from(MEMORIES).where(*asked)) or 0
    columns = [column for column in at if column.name != "data"]
    newest = select(*columns).where(*asked).order_by(at.saved.desc(), at.user, at.id)
    rows = [
        MemoryRow(MemoryName(row.key_id, row.user, row.id), row.revision, row.created, row.saved, row.n_bytes)
        for row in connection.execute(newest.limit(limit).offset(offset))
    ]
    return Page(rows, total)


def sweep(connection: Connection) -> None:
    """Takes away those of keys that are revoked or gone: nobody can ask for them any more."""
    active = select(KEYS.c.id).where(KEYS.c.revoked.is_(None))
    connection.execute(delete(MEMORIES).where(MEMORIES.c.key_id.not_in(active)))


class MemoriesOf:
    """The memories of one key and user as a `StateStore`, for a thread that runs no event loop. What is saved `began`
    then, in seconds since the epoch, or just now."""

    def __init__(
        self, store: Store, key_id: str, user: str = "", bounds: Bounds = BOUNDS, began: float | None = None
    ) -> None:
        self.store, self.key_id, self.user, self.bounds, self.began = store, key_id, user, bounds, began

    def load(self, id: str) -> Saved | None:
        """On a connection of its own: a reader waits for no writer."""
        with self.store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            return load(connection, self._name(id))

    def save(self, id: str, data: bytes, after: int) -> Saved:
        """Stores `data` as the revision after `after`, and waits until it is written; raises what `save` does."""
        new, began = Saved(data, after), time.time() if self.began is None else self.began
        return self.store.write_and_wait(save_begun, self._name(id), new, began, self.bounds)

    def delete(self, id: str) -> None:
        """Removes a memory, and waits until that is written; an unknown id is no error."""
        self.store.write_and_wait(remove, self._name(id))

    def _name(self, id: str) -> MemoryName:
        return MemoryName(self.key_id, self.user, id)


def _is(name: MemoryName) -> tuple[ColumnElement[bool], ...]:
    return (MEMORIES.c.key_id == name.key_id, MEMORIES.c.user == name.user, MEMORIES.c.id == name.id)


def check_name(name: MemoryName) -> None:
    """Raises BadRequest for a name that no memory can have."""
    if not 0 < len(name.id) <= LONGEST_NAME or len(name.user) > LONGEST_NAME:
        raise BadRequest(
            f"A memory's id has 1 to {LONGEST_NAME} characters and its user at most as many; {name.id[:40]!r} of the "
            f"user {name.user[:40]!r} does not."
        )


def _check_size(name: MemoryName, n_bytes: int, bounds: Bounds) -> None:
    if n_bytes > bounds.bytes_of_one:
        raise TooLarge(
            f"Memory {name.id!r} has {n_bytes} bytes, and {bounds.bytes_of_one} are kept of one. Give it a smaller "
            "budget of tokens."
        )


def _check_room(connection: Connection, name: MemoryName, more: int, bounds: Bounds, *, is_new: bool) -> None:
    total = select(func.count(), func.coalesce(func.sum(MEMORIES.c.n_bytes), 0))
    n_kept, bytes_kept = connection.execute(total.where(MEMORIES.c.key_id == name.key_id)).one()
    if n_kept + is_new > bounds.memories_of_key or bytes_kept + more > bounds.bytes_of_key:
        raise TooLarge(
            f"Memory {name.id!r} was to be saved with {more} more bytes, and its key has {n_kept} memories of "
            f"{bytes_kept} bytes; it may have {bounds.memories_of_key} of {bounds.bytes_of_key} in all. Delete some."
        )

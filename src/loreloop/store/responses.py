"""Answers of the responses API that are kept for a while, each of the key that asked: what came in, and the answer.

Bounded for every key in number and bytes; what was used longest ago goes first. Knows nothing of what the JSON means.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select, update

from loreloop.store.deleted import Begun, was_deleted_since
from loreloop.store.rows import KeptResponse
from loreloop.store.schema import KEYS, RESPONSES

MAX_KEPT = 1000  # of a key
TTL_SECONDS = 30 * 86400.0  # without being used, as OpenAI keeps them


def keep_unless_deleted(
    connection: Connection, new: KeptResponse, used: tuple[str, ...], most_bytes: int, begun: Begun
) -> bool:
    """As `keep`; False, and nothing is kept, where the person was deleted while the answer was on its way."""
    if was_deleted_since(connection, begun):
        return False
    keep(connection, new, used, most_bytes)
    return True


def keep(connection: Connection, new: KeptResponse, used: tuple[str, ...], most_bytes: int) -> None:
    """`used` are the ids of the answers that its request referred to, which have been used now."""
    of_key = RESPONSES.c.key_id == new.key_id
    connection.execute(insert(RESPONSES).values(**msgspec.structs.asdict(new), used=new.created, n_bytes=new.n_bytes))
    connection.execute(update(RESPONSES).where(of_key, RESPONSES.c.id.in_(used)).values(used=new.created))
    newest = select(RESPONSES.c.id, RESPONSES.c.n_bytes).where(of_key)
    # Walked from the newest on, so that whatever no longer fits is what was used longest ago.
    left, n_kept = most_bytes, 0
    for row in connection.execute(newest.order_by(RESPONSES.c.used.desc(), RESPONSES.c.created.desc())).all():
        left, n_kept = left - row.n_bytes, n_kept + 1
        if left < 0 or n_kept > MAX_KEPT:
            connection.execute(delete(RESPONSES).where(RESPONSES.c.id == row.id))


def find(connection: Connection, key_id: str, response_id: str) -> KeptResponse | None:
    """A kept answer by its id, None where it is not kept any more or is another key's."""
    row = connection.execute(select(RESPONSES).where(RESPONSES.c.id == response_id, RESPONSES.c.key_id == key_id))
    found = row.first()
    return _kept(found) if found is not None else None


def find_all(connection: Connection, key_id: str, response_ids: Collection[str]) -> list[KeptResponse]:
    """Those of several that are here."""
    wanted_rows = select(RESPONSES).where(RESPONSES.c.id.in_(response_ids), RESPONSES.c.key_id == key_id)
    return [_kept(row) for row in connection.execute(wanted_rows)] if response_ids else []


def chain(connection: Connection, key_id: str, response_id: str) -> list[KeptResponse]:
    """An answer behind those that it goes on from, the first one first; it begins behind what is not here."""
    newest_row = select(RESPONSES).where(RESPONSES.c.id == response_id, RESPONSES.c.key_id == key_id)
    newer, older = newest_row.cte(recursive=True), RESPONSES.alias()
    before = select(older).where(older.c.id == newer.c.previous, older.c.key_id == key_id)
    rows = connection.execute(select(newer.union_all(before))).all()
    return [_kept(row) for row in reversed(rows)]


def remove(connection: Connection, key_id: str, response_id: str) -> bool:
    """Whether there was one."""
    deletion = delete(RESPONSES).where(RESPONSES.c.id == response_id, RESPONSES.c.key_id == key_id)
    return bool(connection.execute(deletion).rowcount)


def sweep(connection: Connection, now: float) -> None:
    """Takes away those that nobody has used for long, and those of keys that are revoked or gone."""
    connection.execute(delete(RESPONSES).where(RESPONSES.c.used < now - TTL_SECONDS))
    active = select(KEYS.c.id).where(KEYS.c.revoked.is_(None))
    connection.execute(delete(RESPONSES).where(RESPONSES.c.key_id.not_in(active)))


def _kept(row: Row[tuple[object, ...]]) -> KeptResponse:
    return KeptResponse(**{name: row._mapping[name] for name in KeptResponse.__struct_fields__})

"""Keys: made, found by their secret, listed, revoked. Only a hash of the secret is stored."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from loreloop.protocol.errors import BadRequest, NotFound
from loreloop.store.rows import KeyRow
from loreloop.store.schema import KEYS, USAGE


class NewKey(NamedTuple):
    """A key that was just made, with its secret, which is not stored."""

    row: KeyRow
    secret: str


def create(
    connection: Connection, name: str, scopes: tuple[str, ...], now: float, expires: float | None = None
) -> NewKey:
    """A new key; its secret is given here and never again."""
    secret = f"tml-{secrets.token_urlsafe(32)}"
    row = KeyRow(id=uuid.uuid4().hex[:12], name=name, scopes=scopes, created=now, revoked=None, expires=expires)
    text = msgspec.json.encode(scopes).decode()
    connection.execute(
        insert(KEYS).values(id=row.id, name=name, hash=hash_of(secret), scopes=text, created=now, expires=expires)
    )
    return NewKey(row, secret)


def find(connection: Connection, secret: str, now: float) -> KeyRow | None:
    """The key with this secret, unless it was revoked or has expired."""
    # How long an index takes says something of the hash, of which nobody can choose a part, and nothing of the secret.
    row = connection.execute(select(KEYS).where(KEYS.c.hash == hash_of(secret), KEYS.c.revoked.is_(None))).first()
    return key_of(row) if row and (row.expires is None or now < row.expires) else None


def active(connection: Connection, key_id: str, now: float) -> KeyRow | None:
    """The key with this id, unless it was revoked or has expired."""
    row = connection.execute(select(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked.is_(None))).first()
    return key_of(row) if row and (row.expires is None or now < row.expires) else None


def any_exist(connection: Connection) -> bool:
    """Whether there is any key, revoked ones included; without one a new server makes the first."""
    return bool(connection.scalar(select(func.count()).select_from(KEYS)))


def list_all(connection: Connection) -> list[KeyRow]:
    """All keys in the order in which they were made, revoked ones included."""
    return [key_of(row) for row in connection.execute(select(KEYS).order_by(KEYS.c.created))]


def get(connection: Connection, key_id: str) -> KeyRow:
    """A key by its id, also a revoked one; NotFound where there is none."""
    row = connection.execute(select(KEYS).where(KEYS.c.id == key_id)).first()
    if row is None:
        raise NotFound(f"There is no key {key_id!r}; `loreloop keys list` shows them.")
    return key_of(row)


def called(connection: Connection, name: str, *, active: bool = False) -> KeyRow:
    """The key with this id, or else the only one with this name; BadRequest where several have it."""
    rows = [row for row in list_all(connection) if row.revoked is None or not active]
    found = [row for row in rows if row.id == name] or [row for row in rows if row.name == name]
    kind = "active key" if active else "key"
    if not found:
        raise NotFound(f"There is no {kind} {name!r}; `loreloop keys list` shows them.")
    if len(found) > 1:
        ids = ", ".join(row.id for row in found)
        raise BadRequest(f"{len(found)} {kind}s are called {name!r}; name one by its id: {ids}.")
    return found[0]


def revoke(connection: Connection, key_id: str, now: float) -> None:
    """From now on nobody gets in with it; what it owns stays, but for kept answers and memories."""
    changed = connection.execute(
        update(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked.is_(None)).values(revoked=now)
    ).rowcount
    if not changed:
        raise NotFound(f"There is no active key {key_id!r}; `loreloop keys list` shows them.")


def withdraw(connection: Connection, scope: str) -> None:
    """Takes a scope from all keys that have it; a key may be left with none."""
    # The scopes are JSON text; a scope with its quotation marks cannot match a part of a longer one.
    holding = select(KEYS).where(func.instr(KEYS.c.scopes, msgspec.json.encode(scope).decode()) > 0)
    for row in [key_of(each) for each in connection.execute(holding)]:
        left = msgspec.json.encode([each for each in row.scopes if each != scope]).decode()
        connection.execute(update(KEYS).where(KEYS.c.id == row.id).values(scopes=left))


def forget(connection: Connection, key_id: str) -> None:
    """Takes a key away that owns nothing, as if it had never been."""
    connection.execute(delete(USAGE).where(USAGE.c.key_id == key_id))
    connection.execute(delete(KEYS).where(KEYS.c.id == key_id))


def forget_expired(connection: Connection, now: float) -> None:
    """Those whose makers were killed before they could take them away."""
    over = select(KEYS.c.id).where(KEYS.c.expires <= now)
    connection.execute(delete(USAGE).where(USAGE.c.key_id.in_(over)))
    connection.execute(delete(KEYS).where(KEYS.c.expires <= now))


def key_of(row: Row[tuple[object, ...]]) -> KeyRow:
    """A key by its row of the table."""
    scopes = msgspec.json.decode(row.scopes, type=tuple[str, ...])
    return KeyRow(
        id=row.id, name=row.name, scopes=scopes, created=row.created, revoked=row.revoked, expires=row.expires
    )


def hash_of(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()

"""What each key has used: one row a key, added to. Knows neither limits nor prices."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.sqlite import insert

from loreloop.store import accounts
from loreloop.store.account_rows import Account, Spent
from loreloop.store.rows import KeyUsage
from loreloop.store.schema import KEYS, RUNS, USAGE


def add(connection: Connection, spent: Mapping[str, KeyUsage]) -> None:
    """Adds what was spent, by key. What a key spent that is forgotten by now goes nowhere."""
    known = set(connection.scalars(select(KEYS.c.id).where(KEYS.c.id.in_(spent))))
    for key_id in known:
        _add(connection, key_id, spent[key_id])


def add_all(connection: Connection, spent: Mapping[str, KeyUsage], charged: Mapping[Account, Spent]) -> None:
    """Adds to keys and to accounts in one transaction, so that a repeated try counts nothing twice."""
    add(connection, spent)
    accounts.add(connection, charged)


def add_trained(connection: Connection, run_id: str, n_tokens: int, now: float) -> None:
    """Adds one training operation of a run, with the tokens that it learned from, to the run's key."""
    key_id = connection.scalar(select(RUNS.c.key_id).where(RUNS.c.id == run_id))
    if key_id is not None:
        _add(connection, key_id, KeyUsage(requests=1, trained_tokens=n_tokens, last_used=now))
    if n_tokens:
        accounts.add_of_run(connection, run_id, Spent(trained_tokens=n_tokens), now)


def by_key(connection: Connection) -> dict[str, KeyUsage]:
    """Of every key that has been used."""
    fields = KeyUsage.__struct_fields__
    rows = connection.execute(select(USAGE))
    return {row.key_id: KeyUsage(**{name: row._mapping[name] for name in fields}) for row in rows}


def _add(connection: Connection, key_id: str, spent: KeyUsage) -> None:
    values = msgspec.structs.asdict(spent)
    # Added up by the database in one statement, so that nobody's count is lost between a read and a write.
    added = {name: USAGE.c[name] + value for name, value in values.items() if name != "last_used"}
    newest = {"last_used": func.max(USAGE.c.last_used, spent.last_used)}
    row = insert(USAGE).values(key_id=key_id, **values)
    connection.execute(row.on_conflict_do_update(index_elements=["key_id"], set_=added | newest))

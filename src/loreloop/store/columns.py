"""Columns that tables got after their databases were made."""

from __future__ import annotations

from sqlalchemy import Connection, Table, inspect, text, update

from loreloop.store.schema import CHECKPOINTS, OPS, SAMPLERS
from loreloop.store.turn_tables import TURNS


def add_column(connection: Connection, table: Table, name: str, kind: str) -> bool:
    """Adds a column unless it is there, and says whether it was new: a new database has had all from the first
    step."""
    is_new = name not in {column["name"] for column in inspect(connection).get_columns(table.name)}
    if is_new:
        connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {name} {kind}"))
    return is_new


def add_refusals(connection: Connection) -> None:
    """Which turns were refused, and which answers broke off."""
    kind = "BOOLEAN DEFAULT 0 NOT NULL"
    if add_column(connection, TURNS, "refused", kind):
        # Who had said no is not known of older turns, so that each without consent counts as refused.
        connection.execute(update(TURNS).where(TURNS.c.consent.is_(False)).values(refused=True))
    add_column(connection, TURNS, "unfinished", kind)


def add_accounts(connection: Connection) -> None:
    """Which checkpoints are public, how many copies a sampler's client has, and when operations were accepted; of
    older operations that is not known."""
    add_column(connection, CHECKPOINTS, "public", "BOOLEAN DEFAULT 0 NOT NULL")
    add_column(connection, SAMPLERS, "n_joined", "BIGINT DEFAULT 0 NOT NULL")
    add_column(connection, OPS, "created", "FLOAT")
    add_column(connection, OPS, "kind", "VARCHAR")

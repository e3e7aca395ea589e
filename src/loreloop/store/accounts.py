"""What was used and what is kept, by hour, key, session and project. Knows no prices.

Training and checkpoints are counted in the transaction of their results, so that a kill loses none of them; samples are
written by the meter, a few seconds late.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.sqlite import insert

from loreloop.store import sessions
from loreloop.store.account_rows import HOUR_SECONDS, Account, Spent, Stored, Used
from loreloop.store.account_tables import USAGE_HOURS
from loreloop.store.schema import CHECKPOINTS, KEYS, RUNS, SESSIONS


def hour_of(moment: float) -> int:
    """The hour, counted from the epoch, in which a moment lies."""
    return int(moment // HOUR_SECONDS)


def add(connection: Connection, spent: Mapping[Account, Spent]) -> None:
    """Adds to accounts, which begin with their first use."""
    for account, more in spent.items():
        values = msgspec.structs.asdict(more)
        # Added up by the database in one statement, so that nobody's count is lost between a read and a write.
        added = {name: USAGE_HOURS.c[name] + value for name, value in values.items()}
        row = insert(USAGE_HOURS).values(**msgspec.structs.asdict(account), **values)
        connection.execute(row.on_conflict_do_update(index_elements=list(Account.__struct_fields__), set_=added))


def add_of_run(connection: Connection, run_id: str, more: Spent, now: float) -> None:
    """Adds what a run has used to the account of its session; nothing where there is no such run any more."""
    run = connection.execute(
        select(RUNS.c.key_id, RUNS.c.session_id, RUNS.c.base_model).where(RUNS.c.id == run_id)
    ).first()
    if run is not None:
        add(connection, {Account(hour_of(now), run.key_id, run.session_id, run.base_model): more})


def between(connection: Connection, first_hour: int, end_hour: int) -> list[Used]:
    """Accounts from an hour on, before another one, in the order of their hours."""
    table = USAGE_HOURS.c
    query = (
        select(USAGE_HOURS, KEYS.c.name.label("key_name"), SESSIONS.c.project_id, SESSIONS.c.user_metadata)
        .select_from(
            USAGE_HOURS.outerjoin(KEYS, KEYS.c.id == table.key_id).outerjoin(
                SESSIONS, SESSIONS.c.id == table.session_id
            )
        )
        .where(table.hour >= first_hour, table.hour < end_hour)
        .order_by(table.hour, table.key_id, table.session_id, table.base_model)
    )
    return [
        Used(
            Account(row.hour, row.key_id, row.session_id, row.base_model),
            Spent(*(row._mapping[name] for name in Spent.__struct_fields__)),
            row.key_name,
            row.project_id,
            msgspec.json.decode(row.user_metadata) if row.user_metadata else None,
        )
        for row in connection.execute(query)
    ]


def stored(connection: Connection, project_id: str | None) -> list[Stored]:
    """What keys keep now, of all projects or of one, the most bytes first."""
    size, project = func.sum(CHECKPOINTS.c.size_bytes), sessions.project()
    query = (
        select(project.label("project_id"), KEYS.c.id, KEYS.c.name, func.count().label("n"), size.label("size"))
        .select_from(
            CHECKPOINTS.join(RUNS, RUNS.c.id == CHECKPOINTS.c.run_id)
            .join(SESSIONS, SESSIONS.c.id == RUNS.c.session_id)
            .join(KEYS, KEYS.c.id == CHECKPOINTS.c.key_id)
        )
        .group_by(project, KEYS.c.id, KEYS.c.name)
        .order_by(size.desc())
    )
    if project_id is not None:
        query = query.where(project == project_id)
    return [Stored(row.project_id, row.id, row.name, row.n, row.size) for row in connection.execute(query)]

"""What the operator of a data folder sees: runs and checkpoints of all keys, with the names of their owners."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, select

from loreloop.protocol.errors import NotFound
from loreloop.protocol.paths import CheckpointKind, CheckpointPath
from loreloop.store import checkpoints, keys, runs
from loreloop.store.rows import CheckpointRow, RunRow
from loreloop.store.schema import CHECKPOINTS, DEPLOYED, RUNS


class RunSummary(msgspec.Struct, frozen=True):
    """A run with what was saved of it, `size_bytes` all together."""

    run: RunRow
    key_name: str
    n_checkpoints: int
    size_bytes: int


class CheckpointSummary(msgspec.Struct, frozen=True):
    """`deployments` are the names that answer with it now."""

    row: CheckpointRow
    base_model: str
    key_name: str
    deployments: tuple[str, ...]


def list_runs(connection: Connection, key_id: str | None, limit: int) -> list[RunSummary]:
    """Those that were used last come first; `key_id` None: of all keys."""
    query = select(RUNS.c.id, RUNS.c.key_id).order_by(RUNS.c.last_request.desc()).limit(limit)
    if key_id is not None:
        query = query.where(RUNS.c.key_id == key_id)
    return [summary(connection, runs.get(connection, row.key_id, row.id)) for row in connection.execute(query)]


def summary(connection: Connection, run: RunRow) -> RunSummary:
    """A run with the name of its key, and the number and size of its checkpoints."""
    saved = select(func.count(), func.coalesce(func.sum(CHECKPOINTS.c.size_bytes), 0))
    n_checkpoints, size_bytes = connection.execute(saved.where(CHECKPOINTS.c.run_id == run.id)).one()
    return RunSummary(run, _name_of(connection, run.key_id), n_checkpoints, size_bytes)


def find_run(connection: Connection, run_id: str) -> RunRow:
    """A run of any key."""
    key_id = connection.scalar(select(RUNS.c.key_id).where(RUNS.c.id == run_id))
    if key_id is None:
        raise NotFound(f"There is no training run {run_id!r}; `loreloop runs list` shows them.")
    return runs.get(connection, key_id, run_id)


def list_checkpoints(
    connection: Connection, key_id: str | None, run_id: str | None, limit: int | None
) -> list[CheckpointSummary]:
    """The newest come first; None: of all keys, of all runs."""
    table = CHECKPOINTS.c
    query = select(table.key_id, table.run_id, table.kind, table.name).order_by(table.created.desc()).limit(limit)
    if key_id is not None:
        query = query.where(table.key_id == key_id)
    if run_id is not None:
        query = query.where(table.run_id == run_id)
    return [
        _seen(
            connection,
            checkpoints.get(connection, row.key_id, CheckpointPath(row.run_id, CheckpointKind(row.kind), row.name)),
        )
        for row in connection.execute(query)
    ]


def find_checkpoint(connection: Connection, path: CheckpointPath) -> CheckpointSummary:
    """A checkpoint of any key."""
    try:
        return _seen(connection, checkpoints.of_anyone(connection, path))
    except NotFound:
        raise NotFound(f"There is no checkpoint {path}; `loreloop checkpoints list` shows them.") from None


def _seen(connection: Connection, row: CheckpointRow) -> CheckpointSummary:
    names = connection.scalars(select(DEPLOYED.c.name).where(DEPLOYED.c.target == str(row.path)))
    base_model = connection.scalar(select(RUNS.c.base_model).where(RUNS.c.id == row.run_id)) or ""
    return CheckpointSummary(row, base_model, _name_of(connection, row.key_id), tuple(names))


def _name_of(connection: Connection, key_id: str) -> str:
    return keys.get(connection, key_id).name

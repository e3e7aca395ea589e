"""Sampling sessions: what a client samples from, seen by its key."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects.sqlite import insert

from loreloop.protocol.errors import NotFound
from loreloop.protocol.sampling import Revision
from loreloop.store.files import in_row, placed
from loreloop.store.rows import SamplerRow
from loreloop.store.schema import SAMPLERS, SESSIONS


class Weights(NamedTuple):
    """Weights that can be sampled, and when they were made, in seconds since the epoch."""

    created: float
    revision: Revision


def create(connection: Connection, sampler: SamplerRow, now: float) -> None:
    """Adds a sampler; a repeated call for the same id changes nothing."""
    values = msgspec.structs.asdict(sampler) | {"folder": in_row(sampler.folder) if sampler.folder else None}
    connection.execute(insert(SAMPLERS).values(**values, created=now).on_conflict_do_nothing())


def get(connection: Connection, key_id: str, sampler_id: str) -> SamplerRow:
    """A sampler of this key; NotFound where it is another key's or there is none."""
    row = connection.execute(select(SAMPLERS).where(SAMPLERS.c.id == sampler_id, SAMPLERS.c.key_id == key_id)).first()
    if row is None:
        raise NotFound(f"There is no sampler {sampler_id!r} of this key; create a sampling session first.")
    return _row(connection, row)


def point_inflight(connection: Connection, run_id: str, revision: Revision) -> None:
    """Moves all in-flight samplers of a run on to a new revision."""
    connection.execute(
        update(SAMPLERS)
        .where(SAMPLERS.c.run_id == run_id, SAMPLERS.c.inflight)
        .values(revision_id=revision.revision_id, folder=in_row(revision.folder))
    )


def join(connection: Connection, key_id: str, sampler_id: str) -> int:
    """The number of one more copy of a sampler's client: 1, 2, … and never one twice."""
    get(connection, key_id, sampler_id)
    joined = update(SAMPLERS).where(SAMPLERS.c.id == sampler_id).values(n_joined=SAMPLERS.c.n_joined + 1)
    return int(connection.execute(joined.returning(SAMPLERS.c.n_joined)).scalar_one())


def of_session(connection: Connection, session_id: str) -> list[SamplerRow]:
    """All samplers that a session has made."""
    rows = connection.execute(select(SAMPLERS).where(SAMPLERS.c.session_id == session_id))
    return [_row(connection, row) for row in rows]


def newest_of_run(connection: Connection, run_id: str) -> Weights | None:
    """The weights of the newest ephemeral sampler, unless its session's end has taken them away."""
    table = SAMPLERS.c
    row = connection.execute(
        select(table.created, table.revision_id, table.folder)
        .join(SESSIONS, SESSIONS.c.id == table.session_id)
        .where(table.run_id == run_id, SESSIONS.c.status == "active")
        .order_by(table.created.desc())
        .limit(1)
    ).first()
    return Weights(row.created, Revision(row.revision_id, placed(connection, row.folder))) if row else None


def _row(connection: Connection, row: Row[tuple[object, ...]]) -> SamplerRow:
    return SamplerRow(
        id=row.id,
        session_id=row.session_id,
        key_id=row.key_id,
        base_model=row.base_model,
        model_path=row.model_path,
        run_id=row.run_id,
        inflight=bool(row.inflight),
        revision_id=row.revision_id,
        folder=placed(connection, row.folder) if row.folder else None,
    )

"""When the operations of a session were accepted and when they ended, as long as their results are known."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select

from loreloop.store.schema import OPS, RESULTS, RUNS


class Stretch(msgspec.Struct, frozen=True):
    """One operation of a run, in seconds since the epoch; `ended` is None while it has not."""

    run_id: str
    request_id: str
    kind: str
    accepted: float
    ended: float | None


def of_session(connection: Connection, session_id: str) -> list[Stretch]:
    """All operations of a session's runs, in the order of their runs and sequence ids. Those of before there were
    traces are left out, since nobody noted when they came."""
    of_runs = select(RUNS.c.id).where(RUNS.c.session_id == session_id)
    query = (
        select(OPS.c.model_id, OPS.c.request_id, OPS.c.kind, OPS.c.created, RESULTS.c.created.label("ended"))
        .select_from(OPS.outerjoin(RESULTS, RESULTS.c.request_id == OPS.c.request_id))
        .where(OPS.c.model_id.in_(of_runs), OPS.c.created.is_not(None), OPS.c.kind != "skip")
        .order_by(OPS.c.model_id, OPS.c.seq_id)
    )
    return [
        Stretch(row.model_id, row.request_id, row.kind, row.created, row.ended) for row in connection.execute(query)
    ]

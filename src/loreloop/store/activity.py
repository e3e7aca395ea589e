"""What is alive in a data folder, of all keys, with the names of their owners: for whoever runs the server."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from sqlalchemy import Connection, func, select

from loreloop.store.schema import JOBS, KEYS, OPS, RUNS, SESSIONS


class LiveSession(msgspec.Struct, frozen=True):
    """A session that has not ended; times are in seconds since the epoch."""

    id: str
    key_name: str
    display_name: str | None
    created: float
    last_seen: float


class LiveRun(msgspec.Struct, frozen=True):
    """A run that can still be trained."""

    id: str
    key_name: str
    base_model: str
    rank: int
    last_request: float


class UnfinishedJob(msgspec.Struct, frozen=True):
    """A fine-tuning job that waits, runs or rests."""

    id: str
    key_name: str
    status: str
    step: int


class Living(msgspec.Struct, frozen=True):
    """Those that were used last, and how many there are of each altogether."""

    sessions: list[LiveSession]
    n_sessions: int
    runs: list[LiveRun]
    n_runs: int
    jobs: list[UnfinishedJob]


def living(connection: Connection, limit: int, ended: Collection[str]) -> Living:
    """At most `limit` of each; `ended` are the states of jobs that are over."""
    is_active, is_live, is_open = SESSIONS.c.status == "active", RUNS.c.live, JOBS.c.status.not_in(ended)
    # A key may be gone that is only of a command; its things are still there.
    named = func.coalesce(KEYS.c.name, "").label("key_name")
    of_sessions = select(SESSIONS, named).select_from(SESSIONS.outerjoin(KEYS, KEYS.c.id == SESSIONS.c.key_id))
    of_runs = select(RUNS, named).select_from(RUNS.outerjoin(KEYS, KEYS.c.id == RUNS.c.key_id))
    of_jobs = select(JOBS, named).select_from(JOBS.outerjoin(KEYS, KEYS.c.id == JOBS.c.key_id))
    sessions = connection.execute(of_sessions.where(is_active).order_by(SESSIONS.c.last_seen.desc()).limit(limit))
    runs = connection.execute(of_runs.where(is_live).order_by(RUNS.c.last_request.desc()).limit(limit))
    jobs = connection.execute(of_jobs.where(is_open).order_by(JOBS.c.number).limit(limit))
    return Living(
        sessions=[LiveSession(row.id, row.key_name, row.display_name, row.created, row.last_seen) for row in sessions],
        n_sessions=connection.scalar(select(func.count()).select_from(SESSIONS).where(is_active)) or 0,
        runs=[
            LiveRun(row.id, row.key_name, row.base_model, msgspec.json.decode(row.lora)["rank"], row.last_request)
            for row in runs
        ],
        n_runs=connection.scalar(select(func.count()).select_from(RUNS).where(is_live)) or 0,
        jobs=[UnfinishedJob(row.id, row.key_name, row.status, row.step) for row in jobs],
    )


def kinds_of(connection: Connection, request_ids: Collection[str]) -> dict[str, str]:
    """What kinds of operation these are, by their ids; without those that are not known."""
    query = select(OPS.c.request_id, OPS.c.kind).where(OPS.c.request_id.in_(request_ids))
    return {row.request_id: row.kind or "operation" for row in connection.execute(query)}


class Before(msgspec.Struct, frozen=True):
    """How many operations of a base model were accepted before one, and have not ended."""

    base_model: str
    n_before: int


def unfinished_before(connection: Connection, request_id: str) -> Before | None:
    """None for an operation that is not known, has ended, or was accepted before anybody noted when."""
    one = connection.execute(select(OPS).where(OPS.c.request_id == request_id)).first()
    if one is None or one.done or one.created is None:
        return None
    earlier = (OPS.c.base_model == one.base_model, OPS.c.done.is_(False), OPS.c.created < one.created)
    n_before = connection.scalar(select(func.count()).select_from(OPS).where(*earlier)) or 0
    return Before(one.base_model, n_before)

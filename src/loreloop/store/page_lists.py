"""Lists that people look at, each in one query however long it is: runs with what was saved and measured of them, and
what came last of turns and of feedback. Who may see what is decided by whoever asks."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, func, select

from loreloop.protocol.feedback import Feedback
from loreloop.protocol.training import LoraSpec
from loreloop.store import jobs
from loreloop.store.fates import fate_column
from loreloop.store.feedback import statement_of
from loreloop.store.feedback_tables import FEEDBACK
from loreloop.store.keys import key_of
from loreloop.store.rows import KeyRow
from loreloop.store.schema import CHECKPOINTS, FILES, JOBS, KEYS, RUNS
from loreloop.store.series import Point, thinned
from loreloop.store.series_tables import RUN_SERIES
from loreloop.store.turn_tables import EPISODES, TURN_TALLIES, TURNS
from loreloop.store.turns import all_turns


class RunLine(msgspec.Struct, frozen=True, kw_only=True):
    """A run in a list; times in seconds since the epoch, `size_bytes` of all its checkpoints together."""

    id: str
    key_name: str
    base_model: str
    rank: int
    created: float
    last_request: float
    is_live: bool
    is_lost: bool
    n_checkpoints: int
    size_bytes: int
    n_steps: int


class TurnLine(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded turn in a list, without its content."""

    id: str
    episode_id: str
    user: str
    created: float
    arm: str
    version: int
    fate: str
    candidate: str | None
    is_heard: bool


def n_runs(connection: Connection, key_id: str | None) -> int:
    """How many runs a key has; None: all keys."""
    return connection.scalar(_of_key(select(func.count()).select_from(RUNS), key_id)) or 0


def runs(connection: Connection, key_id: str | None, limit: int, offset: int) -> list[RunLine]:
    """Runs of a key (None: of all), those that were used last first."""
    own = CHECKPOINTS.c.run_id == RUNS.c.id
    n_saved = select(func.count()).where(own).scalar_subquery()
    size = select(func.coalesce(func.sum(CHECKPOINTS.c.size_bytes), 0)).where(own).scalar_subquery()
    points = RUN_SERIES.c
    newest = select(points.step + points.n_steps - 1).where(points.run_id == RUNS.c.id)
    n_steps = newest.order_by(points.step.desc()).limit(1).scalar_subquery()
    query = select(RUNS, KEYS.c.name, n_saved.label("n_saved"), size.label("size"), n_steps.label("n_made"))
    query = _of_key(query.join(KEYS, KEYS.c.id == RUNS.c.key_id), key_id)
    found = connection.execute(query.order_by(RUNS.c.last_request.desc(), RUNS.c.id).limit(limit).offset(offset))
    return [_run_line(row) for row in found]


def job_series(connection: Connection, job_id: str) -> list[Point]:
    """What a job has measured, in as many points as a run may have. What was no number is left out."""
    points = [
        Point(step, 1, 0.0, {name: value for name, value in values.items() if value is not None})
        for step, values in jobs.metrics(connection, job_id)
    ]
    return thinned(points)


def n_queued_jobs(connection: Connection) -> int:
    """How many jobs of all keys wait for their turn."""
    return connection.scalar(select(func.count()).select_from(JOBS).where(JOBS.c.status == "queued")) or 0


def keys_page(connection: Connection, limit: int, offset: int) -> list[KeyRow]:
    """Keys, those that are in force before those that were revoked, of either the newest first."""
    in_order = select(KEYS).order_by(KEYS.c.revoked.is_not(None), KEYS.c.created.desc(), KEYS.c.id)
    return [key_of(row) for row in connection.execute(in_order.limit(limit).offset(offset))]


def n_keys(connection: Connection) -> int:
    """How many keys there are, revoked ones included."""
    return connection.scalar(select(func.count()).select_from(KEYS)) or 0


def newest_turns(connection: Connection, deployment: str, limit: int) -> list[TurnLine]:
    """The turns of a deployment that were kept or marked last, the newest first."""
    query = all_turns(with_body=False).where(TURNS.c.deployment == deployment).order_by(TURNS.c.number.desc())
    return [
        TurnLine(
            id=row.id,
            episode_id=row.episode_id or "",
            user=row.user,
            created=row.created,
            arm=row.arm,
            version=row.version,
            fate=row.fate,
            candidate=row.candidate,
            is_heard=row.heard > 0,
        )
        for row in connection.execute(query.limit(limit))
    ]


def fates_of_newest(connection: Connection, deployment: str, most: int) -> dict[str, int]:
    """How many of the newest turns of a deployment have which fate, `most` of them: to count all would take as long as
    there are many."""
    joined = TURNS.outerjoin(EPISODES, EPISODES.c.number == TURNS.c.episode)
    newest = select(fate_column()).select_from(joined).where(TURNS.c.deployment == deployment)
    some = newest.order_by(TURNS.c.number.desc()).limit(most).subquery()
    rows = connection.execute(select(some.c.fate, func.count().label("n")).group_by(some.c.fate))
    return {row.fate: row.n for row in rows}


def tally(connection: Connection, deployment: str) -> dict[str, int]:
    """How many bytes a deployment's turns have, and how many turns are gone."""
    row = connection.execute(select(TURN_TALLIES).where(TURN_TALLIES.c.deployment == deployment)).first()
    found = (row.n_bytes, row.expired, row.dropped) if row is not None else (0, 0, 0)
    return dict(zip(("n_bytes", "expired", "dropped"), found, strict=True))


def newest_feedback(connection: Connection, deployment: str, limit: int) -> list[Feedback]:
    """What was said last of a deployment's answers, the newest first."""
    about = FEEDBACK.c
    query = select(FEEDBACK).where(about.deployment == deployment).order_by(about.number.desc()).limit(limit)
    return [statement_of(row) for row in connection.execute(query)]


def file_facts(connection: Connection, file_id: str) -> dict[str, Any]:
    """The name and size of a file that a job names, whoever owns it; both None where it is gone."""
    row = connection.execute(select(FILES.c.name, FILES.c.n_bytes).where(FILES.c.id == file_id)).first()
    return {"name": row.name, "n_bytes": row.n_bytes} if row else {"name": None, "n_bytes": None}


def _of_key(query: Select[Any], key_id: str | None) -> Select[Any]:
    return query if key_id is None else query.where(RUNS.c.key_id == key_id)


def _run_line(row: Row[tuple[object, ...]]) -> RunLine:
    return RunLine(
        id=row.id,
        key_name=row.name,
        base_model=row.base_model,
        rank=msgspec.json.decode(row.lora, type=LoraSpec).rank,
        created=row.created,
        last_request=row.last_request,
        is_live=row.live,
        is_lost=row.lost is not None,
        n_checkpoints=row.n_saved,
        size_bytes=row.size,
        n_steps=row.n_made or 0,
    )

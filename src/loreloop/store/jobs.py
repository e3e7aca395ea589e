"""Fine-tuning jobs, a row each, with their events and metrics. Seen by the key that asked for them.

A status is what whoever asks is told; whether a worker has let go of a job yet is no matter of this file.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from loreloop.protocol.errors import Conflict, NotFound, TooLarge
from loreloop.protocol.jobs import ENDED, JobError, JobPlan, JobStatus, Level, Metrics, ResumePoint
from loreloop.store import uploads
from loreloop.store.job_rows import EventRow, FileRow, JobRow
from loreloop.store.pages import number_in_job, number_of_row
from loreloop.store.schema import JOB_EVENTS, JOB_METRICS, JOBS

RUNNING: tuple[JobStatus, ...] = ("running",)
MAX_EVENTS = 10_000  # of a job; the first ones go
TOLD_METRICS = 5


def new_id() -> str:
    """An id that nobody has and nobody can guess."""
    return f"ftjob-{secrets.token_hex(12)}"


def create(connection: Connection, row: JobRow, most_unfinished: int) -> JobRow:
    """Puts a job into the queue. TooLarge where its key has too many that are not finished."""
    unfinished = JOBS.c.status.not_in(ENDED)
    of_key = select(func.count()).select_from(JOBS).where(JOBS.c.key_id == row.key_id, unfinished)
    n_unfinished = connection.scalar(of_key) or 0
    if n_unfinished >= most_unfinished:
        raise TooLarge(
            f"This key has {n_unfinished} jobs that are not finished, and may have {most_unfinished}; wait for one, or "
            "cancel one."
        )
    values = {"id": row.id, "key_id": row.key_id, "created": row.created, "status": row.status, "step": row.step}
    values |= {"plan": _text(row.plan), "trained_tokens": 0, "attempts": 0}
    result = connection.execute(insert(JOBS).values(**values))
    return msgspec.structs.replace(row, number=result.inserted_primary_key[0])  # type: ignore[index]


def get(connection: Connection, key_id: str, job_id: str) -> JobRow:
    """A job of this key; NotFound where it is another key's or there is none."""
    row = connection.execute(select(JOBS).where(JOBS.c.id == job_id, JOBS.c.key_id == key_id)).first()
    if row is None:
        raise NotFound(f"There is no job {job_id[:80]!r} of this key; GET /v1/fine_tuning/jobs lists them.")
    return _row(row)


def of_anyone(connection: Connection, job_id: str) -> JobRow:
    """For the server itself, and for its operator."""
    row = connection.execute(select(JOBS).where(JOBS.c.id == job_id)).first()
    if row is None:
        raise NotFound(f"There is no job {job_id[:80]!r}; `loreloop jobs list` shows them.")
    return _row(row)


def list_page(
    connection: Connection,
    key_id: str | None,
    limit: int,
    *,
    after: str = "",
    metadata: dict[str, str] | None = None,
    without_metadata: bool = False,
) -> list[JobRow]:
    """`limit` jobs of a key (None: of all) behind the job `after`, the newest first; only those whose metadata hold
    what is given. BadRequest where `after` is none."""
    wanted = select(JOBS) if key_id is None else select(JOBS).where(JOBS.c.key_id == key_id)
    if after:
        wanted = wanted.where(JOBS.c.number < number_of_row(connection, JOBS, key_id, after, "job"))
    held = func.json_extract(JOBS.c.plan, "$.metadata")
    if without_metadata:
        wanted = wanted.where(held.is_(None))
    for name, value in (metadata or {}).items():
        # The name is a parameter of the query, so that nothing in it can be taken for a path.
        entry = func.json_each(JOBS.c.plan, "$.metadata").table_valued("key", "value")
        there = select(entry.c.key).where(entry.c.key == name, entry.c.value == value)
        wanted = wanted.where(there.exists())
    return [_row(row) for row in connection.execute(wanted.order_by(JOBS.c.number.desc()).limit(limit))]


def waiting(connection: Connection) -> list[JobRow]:
    """Queued jobs of all keys, the oldest first."""
    rows = connection.execute(select(JOBS).where(JOBS.c.status == "queued").order_by(JOBS.c.number))
    return [_row(row) for row in rows]


def in_status(connection: Connection, status: JobStatus) -> list[JobRow]:
    """All jobs that are told to be in a state."""
    return [_row(row) for row in connection.execute(select(JOBS).where(JOBS.c.status == status))]


def with_leftovers(connection: Connection) -> list[JobRow]:
    """Jobs that have ended and still hold where they could go on."""
    ended = select(JOBS).where(JOBS.c.status.in_(ENDED), JOBS.c.resume.is_not(None))
    return [_row(row) for row in connection.execute(ended)]


def change_status(
    connection: Connection, job_id: str, status: JobStatus, now: float, *, only_from: Collection[JobStatus] = ()
) -> JobRow:
    """Changes what is told of a job, and gives it as it is then. Conflict where it is in none of the states that the
    change may come from."""
    row = of_anyone(connection, job_id)
    if only_from:
        _check_status(
            row, only_from, {"queued": "resume", "cancelled": "cancel", "paused": "pause"}.get(status, "change")
        )
    finished = now if status in ENDED else None
    started = {"started": now} if status == "running" and row.started is None else {}
    connection.execute(_of(job_id).values(status=status, finished=finished, **started))
    return of_anyone(connection, job_id)


def fail(connection: Connection, job_id: str, error: JobError, now: float) -> None:
    """Ends a job with the reason. Conflict where it has ended already."""
    change_status(connection, job_id, "failed", now, only_from=("queued", "running", "paused"))
    connection.execute(_of(job_id).values(error=_text(error)))


def took(connection: Connection, job_id: str, attempts: int) -> None:
    """A worker begins with a job, for the so manieth time since it last got ahead."""
    connection.execute(_of(job_id).values(attempts=attempts))


def began(connection: Connection, job_id: str, n_steps: int) -> None:
    """The job has so many steps before it."""
    connection.execute(_of(job_id).values(n_steps=n_steps))


def stepped(
    connection: Connection, job_id: str, step: int, metrics: Metrics, *, trained_tokens: int, now: float
) -> None:
    """Records a step with its metrics, in the place of the same step of an earlier attempt."""
    connection.execute(_of(job_id).values(step=step, trained_tokens=trained_tokens))
    same = (JOB_METRICS.c.job_id == job_id, JOB_METRICS.c.step == step)
    connection.execute(delete(JOB_METRICS).where(*same))
    connection.execute(insert(JOB_METRICS).values(job_id=job_id, step=step, values=_text(metrics)))
    say(connection, job_id, "info", f"Step {step}: {in_words(metrics)}", now, data={"step": step, **metrics})


def kept(connection: Connection, job_id: str, point: ResumePoint) -> ResumePoint | None:
    """Records where the job can go on from now on; gives the point before, whose files nobody needs any more."""
    before = of_anyone(connection, job_id).resume
    connection.execute(_of(job_id).values(resume=_text(point), attempts=0))
    return before


def let_go(connection: Connection, job_id: str) -> ResumePoint | None:
    """Forgets where a job could go on, and gives it."""
    before = of_anyone(connection, job_id).resume
    connection.execute(_of(job_id).values(resume=None))
    return before


def go_back(connection: Connection, job_id: str, only_from: Collection[JobStatus] = ("queued", "running")) -> JobRow:
    """Puts what is told of a job back to where it will go on: later steps will be made again. Conflict where it is in
    none of these states."""
    row = of_anyone(connection, job_id)
    _check_status(row, only_from, "go back")
    step, tokens = (row.resume.step, row.resume.trained_tokens) if row.resume else (0, 0)
    later = (JOB_METRICS.c.job_id == job_id, JOB_METRICS.c.step > step)
    connection.execute(delete(JOB_METRICS).where(*later))
    connection.execute(_of(job_id).values(step=step, trained_tokens=tokens))
    return of_anyone(connection, job_id)


def succeed(connection: Connection, job_id: str, result: FileRow, now: float) -> None:
    """Ends a job with the file that holds its metrics, both or neither. Conflict where it does not run any more."""
    change_status(connection, job_id, "succeeded", now, only_from=RUNNING)
    uploads.add_result(connection, result)
    connection.execute(_of(job_id).values(result_file=result.id))


def metrics(connection: Connection, job_id: str) -> list[tuple[int, Metrics]]:
    """Every step's metrics in their order."""
    rows = connection.execute(select(JOB_METRICS).where(JOB_METRICS.c.job_id == job_id).order_by(JOB_METRICS.c.step))
    return [(row.step, msgspec.json.decode(row._mapping["values"])) for row in rows]


def say(
    connection: Connection, job_id: str, level: Level, message: str, now: float, data: dict[str, Any] | None = None
) -> None:
    """Adds an event; of very many the oldest go. With `data` it is one of metrics."""
    last = connection.scalar(select(func.max(JOB_EVENTS.c.number)).where(JOB_EVENTS.c.job_id == job_id)) or 0
    kind = "message" if data is None else "metrics"
    values = {"job_id": job_id, "number": last + 1, "created": now, "level": level, "kind": kind, "message": message}
    connection.execute(insert(JOB_EVENTS).values(**values, data=_text(data or {})))
    old = (JOB_EVENTS.c.job_id == job_id, JOB_EVENTS.c.number <= last + 1 - MAX_EVENTS)
    connection.execute(delete(JOB_EVENTS).where(*old))


def events(
    connection: Connection, job_id: str, limit: int, *, after: str = "", behind: int | None = None
) -> list[EventRow]:
    """`limit` events of a job: the newest first, behind the event `after`; or with `behind` in the order in which they
    happened, those later than this number. BadRequest where `after` is none."""
    wanted = select(JOB_EVENTS).where(JOB_EVENTS.c.job_id == job_id)
    if behind is not None:
        wanted = wanted.where(JOB_EVENTS.c.number > behind).order_by(JOB_EVENTS.c.number)
    else:
        if after:
            wanted = wanted.where(JOB_EVENTS.c.number < number_in_job(job_id, "ftevent", after, "event"))
        wanted = wanted.order_by(JOB_EVENTS.c.number.desc())
    return [_event(row) for row in connection.execute(wanted.limit(limit))]


def beginning_at(connection: Connection, key_id: str, state_path: str) -> str | None:
    """An unfinished job of a key that begins at a saved state, None where there is none."""
    start = func.json_extract(JOBS.c.plan, "$.start_path")
    unfinished = select(JOBS.c.id).where(JOBS.c.key_id == key_id, JOBS.c.status.not_in(ENDED))
    return connection.scalar(unfinished.where(start == state_path).limit(1))


def sweep(connection: Connection, ended_before: float) -> None:
    """Takes away jobs that ended long ago, with their events and metrics. What they made stays."""
    old = select(JOBS.c.id).where(JOBS.c.finished < ended_before)
    for table in (JOB_EVENTS, JOB_METRICS):
        connection.execute(delete(table).where(table.c.job_id.in_(old)))
    connection.execute(delete(JOBS).where(JOBS.c.finished < ended_before))


def in_words(metrics: Metrics) -> str:
    """Metrics as an event tells them: the first few, since its data have them all."""
    shown = list(metrics.items())[:TOLD_METRICS]
    return ", ".join(f"{name.replace('_', ' ')}={value:.4g}" for name, value in shown)


def _check_status(row: JobRow, only_from: Collection[JobStatus], what: str) -> None:
    if row.status not in only_from:
        raise Conflict(f"The job {row.id} is {row.status}, so there is nothing to {what}.")


def _of(job_id: str) -> Any:
    return update(JOBS).where(_has_id(job_id))


def _has_id(job_id: str) -> ColumnElement[bool]:
    return JOBS.c.id == job_id


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _event(row: Row[tuple[object, ...]]) -> EventRow:
    values = {name: row._mapping[name] for name in EventRow.__struct_fields__}
    return EventRow(**values | {"data": msgspec.json.decode(values["data"])})


def _row(row: Row[tuple[object, ...]]) -> JobRow:
    values = {name: row._mapping[name] for name in JobRow.__struct_fields__}
    kinds: dict[str, Any] = {"plan": JobPlan, "error": JobError, "resume": ResumePoint}
    read = {name: msgspec.json.decode(values[name], type=kinds[name]) for name in kinds if values[name]}
    return JobRow(**values | read)

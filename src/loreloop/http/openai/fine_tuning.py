"""OpenAI's fine-tuning jobs: asked for, listed, ended, and followed. Each key sees its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.addresses import limit_of
from loreloop.http.bodies import answer, read_as_sent
from loreloop.http.openai.files import page
from loreloop.http.openai.job_format import checkpoint_json, event_json, job_json
from loreloop.http.openai.job_plans import plan_of
from loreloop.http.services import TRAIN, Services, caller, now, services
from loreloop.http.sse import EventStream, data_event
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.fine_tuning_rest import CreateJob
from loreloop.protocol.jobs import ENDED
from loreloop.store import jobs, keys, tuned_models
from loreloop.store.job_rows import JobRow

USUAL_PAGE, MAX_PAGE = 20, 100
MAX_METADATA = 16  # entries that a job may have
STREAMED_AT_ONCE = 500
KEY_SECONDS = 5.0  # between two looks at whether a stream's key is still valid
DONE = b"data: [DONE]\n\n"


async def create(request: Request) -> Response:
    """Takes a job in, checked; it begins when its turn comes."""
    key, served = caller(request, TRAIN), services(request)
    body = await read_as_sent(request, CreateJob)
    plan = await plan_of(served, key, body)
    return answer(
        job_json(await served.desk.create(JobRow(id=jobs.new_id(), key_id=key.id, created=now(), plan=plan)), now())
    )


async def list_jobs(request: Request) -> Response:
    """The key's jobs by pages, the newest first."""
    key, limit = caller(request, TRAIN), limit_of(request, USUAL_PAGE, MAX_PAGE)
    query = request.query_params
    wanted = {name[9:-1]: value for name, value in query.items() if name.startswith("metadata[") and name[-1] == "]"}
    if len(wanted) > MAX_METADATA:
        raise BadRequest(f"The address names {len(wanted)} entries of metadata; a job has at most {MAX_METADATA}.")
    if query.get("metadata", "null") != "null":
        raise BadRequest("metadata in the address is metadata[name]=value, or null for jobs without any.")
    rows = services(request).store.read(
        jobs.list_page,
        key.id,
        limit + 1,
        after=query.get("after", ""),
        metadata=wanted,
        without_metadata="metadata" in query,
    )
    return answer(page([job_json(row, now()) for row in rows], limit))


async def retrieve(request: Request) -> Response:
    """One job as it is now."""
    return answer(job_json(_job(request), now()))


async def cancel(request: Request) -> Response:
    """Ends a job; the step that runs is its last one."""
    return answer(job_json(await services(request).desk.cancel(_job(request).id), now()))


async def pause(request: Request) -> Response:
    """Lets a job rest until it is resumed."""
    return answer(job_json(await services(request).desk.pause(_job(request).id), now()))


async def resume(request: Request) -> Response:
    """Lets a paused job go on."""
    return answer(job_json(await services(request).desk.resume(_job(request).id), now()))


async def events(request: Request) -> Response:
    """What has happened to a job by pages, the newest first; with `stream=true` as it happens, until the job ends."""
    job, served, query = _job(request), services(request), request.query_params
    if query.get("stream", "false").lower() == "true":
        return EventStream(happening(served, job), {}, lambda: None)
    limit = limit_of(request, USUAL_PAGE, MAX_PAGE)
    rows = served.store.read(jobs.events, job.id, limit + 1, after=query.get("after", ""))
    return answer(page([event_json(row) for row in rows], limit))


async def happening(served: Services, job: JobRow) -> AsyncIterator[bytes]:
    """A job's events from the first one on, each when it has happened, as long as its key is valid."""
    behind, job_id = 0, job.id
    while served.store.read(keys.active, job.key_id, now()) is not None:
        # Asked for before the store is read: what happens in between then ends the wait at once.
        change = served.desk.change_of(job_id)
        ended = served.store.read(jobs.of_anyone, job_id).status in ENDED
        rows = served.store.read(jobs.events, job_id, STREAMED_AT_ONCE, behind=behind)
        for row in rows:
            yield data_event(event_json(row))
            behind = row.number
        if len(rows) == STREAMED_AT_ONCE:
            continue
        if ended:
            yield DONE
            return
        # Nobody tells of a key that was revoked, and a job that rests may have no further event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KEY_SECONDS):
                await change.wait()


async def checkpoints(request: Request) -> Response:
    """The models that a job has made by pages, the newest first."""
    job, limit = _job(request), limit_of(request, 10, MAX_PAGE)
    after = request.query_params.get("after", "")
    rows = services(request).store.read(tuned_models.of_job, job.id, limit + 1, after)
    return answer(page([checkpoint_json(row) for row in rows], limit))


def _job(request: Request) -> JobRow:
    key = caller(request, TRAIN)
    job_id: Any = request.path_params["job_id"]
    return services(request).store.read(jobs.get, key.id, job_id)


JOB = "/fine_tuning/jobs/{job_id}"
ROUTES = [
    Route("/fine_tuning/jobs", create, methods=["POST"]),
    Route("/fine_tuning/jobs", list_jobs, methods=["GET"]),
    Route(JOB, retrieve, methods=["GET"]),
    Route(f"{JOB}/cancel", cancel, methods=["POST"]),
    Route(f"{JOB}/pause", pause, methods=["POST"]),
    Route(f"{JOB}/resume", resume, methods=["POST"]),
    Route(f"{JOB}/events", events, methods=["GET"]),
    Route(f"{JOB}/checkpoints", checkpoints, methods=["GET"]),
]

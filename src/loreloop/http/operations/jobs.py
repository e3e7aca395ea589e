"""Fine-tuning jobs under `/loop/v1`, for whoever runs the server: with `train` a key's own, with `admin` anybody's."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import answer
from loreloop.http.services import ADMIN, TRAIN, caller, has, services
from loreloop.store import jobs
from loreloop.store.job_rows import JobRow


async def cancel(request: Request) -> Response:
    """Ends a job for good. Conflict where it has ended."""
    return told(await services(request).desk.cancel(job_id_of(request)))


async def pause(request: Request) -> Response:
    """Lets a job rest. Conflict where it neither runs nor waits."""
    return told(await services(request).desk.pause(job_id_of(request)))


async def resume(request: Request) -> Response:
    """Lets a paused job go on. Conflict where it is not paused."""
    return told(await services(request).desk.resume(job_id_of(request)))


def told(row: JobRow) -> Response:
    """What has become of a job."""
    return answer({"id": row.id, "status": row.status, "step": row.step})


def job_id_of(request: Request) -> str:
    """The job that the address names; NotFound where it is none that the key may change."""
    key, store, job_id = caller(request, TRAIN), services(request).store, str(request.path_params["job_id"])
    row = store.read(jobs.of_anyone, job_id) if has(key, ADMIN) else store.read(jobs.get, key.id, job_id)
    return row.id


ROUTES = [
    Route("/jobs/{job_id}/cancel", cancel, methods=["POST"]),
    Route("/jobs/{job_id}/pause", pause, methods=["POST"]),
    Route("/jobs/{job_id}/resume", resume, methods=["POST"]),
]

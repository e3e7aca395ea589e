"""Pages of fine-tuning jobs: the list, and one with events, files, models and curves; paused, resumed, cancelled."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from loreloop.http.addresses import limit_of
from loreloop.http.openai.files import body_of
from loreloop.http.openai.job_format import event_json, job_json
from loreloop.http.services import TRAIN, Services, caller, now, services
from loreloop.http.ui.frame import NOTHING, page_route
from loreloop.http.ui.live import Look, live_stream
from loreloop.http.ui.pictures import of_points, pictures
from loreloop.http.ui.rendering import fragment, render
from loreloop.http.ui.seeing import job_seen, owner_seen
from loreloop.http.ui.visits import form
from loreloop.protocol.errors import NotFound
from loreloop.protocol.jobs import ENDED
from loreloop.store import jobs, page_lists, tuned_models, uploads
from loreloop.store.job_rows import JobRow

USUAL_PAGE, MAX_PAGE = 50, 200
EVENTS, MODELS = 100, 100  # on a job's page


async def jobs_page(request: Request) -> Response:
    """The jobs that the key may see, the newest first."""
    key, limit = caller(request, TRAIN), limit_of(request, USUAL_PAGE, MAX_PAGE)
    after = request.query_params.get("after", "")
    found = await services(request).store.read_apart(jobs.list_page, owner_seen(key), limit + 1, after=after)
    rows = [line(row) for row in found[:limit]]
    data = {"jobs": rows, "next": rows[-1]["id"] if len(found) > limit else None}
    return render(request, "jobs.html", data)


def line(row: JobRow) -> dict[str, Any]:
    """A job in a list."""
    return {
        "id": row.id,
        "kind": row.plan.kind,
        "model": row.plan.model,
        "name": row.plan.name,
        "status": row.status,
        "step": row.step,
        "n_steps": row.n_steps,
        "created": row.created,
    }


async def job_page(request: Request) -> Response:
    """One job with all that is known of it."""
    key = caller(request, TRAIN)
    job = job_seen(request, key, str(request.path_params["job_id"]))
    data = await job_data(services(request), job)
    return render(request, "job.html", data, {"pictures": pictures(data["series"])})


async def job_data(served: Services, job: JobRow) -> dict[str, Any]:
    """A job as its page and its JSON tell it."""
    store = served.store
    made = await store.read_apart(tuned_models.of_job, job.id, MODELS)
    named = {"training": job.plan.training_file, "validation": job.plan.validation_file, "result": job.result_file}
    files = [
        {"use": use, "id": file_id, **(await store.read_apart(page_lists.file_facts, file_id))}
        for use, file_id in named.items()
        if file_id
    ]
    return {
        "job": job_json(job, now()),
        "settings": {**job.plan.hyperparameters, "chosen_learning_rate": job.plan.learning_rate, "seed": job.plan.seed},
        "events": [event_json(row) for row in await store.read_apart(jobs.events, job.id, EVENTS)],
        "files": files,
        "models": [msgspec.to_builtins(model) for model in made],
        "series": {job.id: of_points(await store.read_apart(page_lists.job_series, job.id))},
        "actions": actions_of(job),
    }


async def job_file(request: Request) -> Response:
    """The body of a file that a job has read or left, to be saved: no browser shows it as a page."""
    key, store = caller(request, TRAIN), services(request).store
    job, file_id = job_seen(request, key, str(request.path_params["job_id"])), str(request.path_params["file_id"])
    if file_id not in (job.plan.training_file, job.plan.validation_file, job.result_file):
        raise NotFound(NOTHING)
    row = store.read(uploads.get, job.key_id, file_id)
    path = body_of(services(request), row)
    return FileResponse(path, media_type="application/octet-stream", filename=row.name)


def actions_of(job: JobRow) -> list[str]:
    """What can be done with a job as it is."""
    if job.status in ENDED:
        return []
    return ["resume" if job.status == "paused" else "pause", "cancel"]


async def job_live(request: Request) -> Response:
    """The part of a job's page that changes, anew whenever it does."""
    key, job_id = caller(request, TRAIN), str(request.path_params["job_id"])
    job_seen(request, key, job_id)

    async def look() -> Look:
        job = services(request).store.read(jobs.of_anyone, job_id)
        newest = services(request).store.read(jobs.events, job_id, 1)
        return Look((job.status, job.step, newest and newest[0].number), lambda: _shown(request, job))

    return live_stream(request, key, look)


async def _shown(request: Request, job: JobRow) -> str:
    data = await job_data(services(request), job)
    return fragment(request, "job_live.html", {**data, "pictures": pictures(data["series"])})


async def change_job(request: Request) -> Response:
    """Pauses, resumes or cancels a job, as the routes for programs do."""
    key, desk = caller(request, TRAIN), services(request).desk
    changes = {"pause": desk.pause, "resume": desk.resume, "cancel": desk.cancel}
    await form(request)
    job = job_seen(request, key, str(request.path_params["job_id"]))
    change = changes.get(str(request.path_params["action"]))
    if change is None:
        raise NotFound(NOTHING)
    await change(job.id)
    return RedirectResponse(f"/ui/jobs/{job.id}", 303)


ROUTES = [
    page_route("/jobs", jobs_page),
    page_route("/jobs/{job_id}", job_page),
    page_route("/jobs/{job_id}/live", job_live),
    page_route("/jobs/{job_id}/files/{file_id}", job_file),
    page_route("/jobs/{job_id}/{action}", change_job, "POST"),
]

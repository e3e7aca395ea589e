"""Pages of training runs: the list, one run with its curves, and several over one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from loreloop.http.addresses import limit_of, number_of
from loreloop.http.services import INFER, asker, caller, has, services
from loreloop.http.tinker.runs import checkpoint_json
from loreloop.http.tinker.traces import address
from loreloop.http.ui.frame import page_route
from loreloop.http.ui.live import Look, live_stream
from loreloop.http.ui.pictures import of_points, pictures
from loreloop.http.ui.rendering import fragment, render
from loreloop.http.ui.seeing import owner_seen, run_seen
from loreloop.protocol.errors import BadRequest
from loreloop.store import checkpoints, page_lists, runs, series, step_passes
from loreloop.store.rows import KeyRow, RunRow
from loreloop.store.series import Point

USUAL_PAGE, MAX_PAGE = 50, 200
MOST_STEPS = 10  # of which it is looked whether they can be looked into
MOST_COMPARED = 8  # more curves cannot be told apart


async def first_page(request: Request) -> Response:
    """What there is to see, and what to do where there is nothing yet."""
    key, served = asker(request), services(request)
    # A key for one deployment is told of nothing else.
    bases = served.names.all() if has(key, INFER) else list(key.deployments)
    return render(request, "first.html", {"models": bases, "key": key.name, "scopes": key.scopes})


async def runs_page(request: Request) -> Response:
    """The runs that the key may see, those that were used last first."""
    key, store = caller(request, INFER), services(request).store
    limit, offset, owner = limit_of(request, USUAL_PAGE, MAX_PAGE), number_of(request, "offset"), owner_seen(key)
    found = await store.read_apart(page_lists.runs, owner, limit, offset)
    total = await store.read_apart(page_lists.n_runs, owner)
    data = {"runs": msgspec.to_builtins(found), "total": total, "offset": offset, "limit": limit}
    return render(request, "runs.html", data)


async def run_page(request: Request) -> Response:
    """One run: what it is, what was saved of it, and what each of its steps has measured."""
    key = caller(request, INFER)
    run = run_seen(request, key, str(request.path_params["run_id"]))
    data = await run_data(request, key, run)
    return render(request, "run.html", data, {"pictures": _pictures([run], data["series"])})


async def run_data(request: Request, key: KeyRow, run: RunRow) -> dict[str, Any]:
    """A run as its page and its JSON tell it. What its steps have learned from is for its own key alone."""
    store, is_own = services(request).store, run.key_id == key.id
    kept = await store.read_apart(step_passes.kept_steps, run.id, MOST_STEPS) if is_own else []
    saved = await store.read_apart(checkpoints.of_run, run.key_id, run.id)
    points = await store.read_apart(series.of_run, run.id)
    return {
        "run": {
            "id": run.id,
            "base_model": run.base_model,
            "created": run.created,
            "last_request": run.last_request,
            "is_live": run.live,
            "lost": run.lost,
            "n_steps": points[-1].last_step if points else 0,
        },
        "settings": settings_of(run, points),
        "checkpoints": [checkpoint_json(row) for row in saved],
        "series": {run.id: of_points(points)},
        "kept_steps": kept,
        "is_own": is_own,
    }


async def run_live(request: Request) -> Response:
    """The part of a run's page that changes, anew whenever it does."""
    key = caller(request, INFER)
    run_id = str(request.path_params["run_id"])
    run_seen(request, key, run_id)

    async def look() -> Look:
        run = services(request).store.read(runs.of_anyone, run_id)
        newest = services(request).store.read(series.last_of, run_id)
        return Look((run.last_request, run.live, newest and newest.last_step), lambda: _shown(request, key, run))

    return live_stream(request, key, look)


async def _shown(request: Request, key: KeyRow, run: RunRow) -> str:
    data = await run_data(request, key, run)
    return fragment(request, "run_live.html", {**data, "pictures": _pictures([run], data["series"])})


async def run_timeline(request: Request) -> Response:
    """The timeline of the session that the run belongs to, as a file for Perfetto's viewer."""
    key = caller(request, INFER)
    run = run_seen(request, key, str(request.path_params["run_id"]))
    return RedirectResponse(address(request, run.session_id), 303)


async def compare_page(request: Request) -> Response:
    """Several runs over one another, with the settings in which they differ; the first is what the others are compared
    with."""
    key, store = caller(request, INFER), services(request).store
    found = [run_seen(request, key, run_id) for run_id in compared(request)]
    points = {run.id: await store.read_apart(series.of_run, run.id) for run in found}
    measured = {run_id: of_points(some) for run_id, some in points.items()}
    data = {"runs": [run.id for run in found], "differences": differences(found, points), "series": measured}
    return render(request, "compare.html", data, {"pictures": _pictures(found, measured)})


def compared(request: Request) -> list[str]:
    """The runs that the address names, each once. BadRequest where they are too many."""
    query = request.query_params
    named = [*query.getlist("run"), *(text for part in query.getlist("runs") for text in part.split(","))]
    found = list(dict.fromkeys(text.strip() for text in named if text.strip()))
    if len(found) > MOST_COMPARED:
        raise BadRequest(f"The address names {len(found)} runs; at most {MOST_COMPARED} are drawn over one another.")
    return found


def differences(found: Sequence[RunRow], points: Mapping[str, Sequence[Point]]) -> dict[str, list[Any]]:
    """The settings in which runs differ, each with its value in every run; None where a run does not have it."""
    settings = [settings_of(run, points[run.id]) for run in found]
    names = dict.fromkeys(name for each in settings for name in each)
    values = {name: [each.get(name) for each in settings] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def settings_of(run: RunRow, points: Sequence[Point]) -> dict[str, Any]:
    """What a run was made with: its base, its adapter, its first learning rate, and what its client said of it."""
    said = {f"metadata.{name}": value for name, value in (run.user_metadata or {}).items()}
    rate = points[0].values.get("learning_rate") if points else None
    first = {"first_learning_rate": rate} if rate is not None else {}
    return {"base_model": run.base_model, **msgspec.to_builtins(run.lora), **first, **said}


def _pictures(found: Sequence[RunRow], measured: dict[str, Any]) -> list[dict[str, Any]]:
    return pictures({run.id: measured[run.id] for run in found})


ROUTES = [
    page_route("/", first_page),
    page_route("/runs", runs_page),
    page_route("/compare", compare_page),
    page_route("/runs/{run_id}", run_page),
    page_route("/runs/{run_id}/live", run_live),
    page_route("/runs/{run_id}/timeline", run_timeline),
]

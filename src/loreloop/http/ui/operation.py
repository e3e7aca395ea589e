"""The page of whoever runs the server: engines and their queues, what waits, what was asked, the disk; it needs no
engine to be up."""

from __future__ import annotations

import shutil
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from loreloop import __version__
from loreloop.http.operations.health import engines_told
from loreloop.http.services import ADMIN, Services, caller, services
from loreloop.http.ui.frame import page_route
from loreloop.http.ui.live import Look, live_stream
from loreloop.http.ui.rendering import fragment, render
from loreloop.store import page_lists

MOST_ROUTES = 100


async def operation_page(request: Request) -> Response:
    """How the server is."""
    caller(request, ADMIN)
    return render(request, "operation.html", operation_data(services(request)))


async def operation_live(request: Request) -> Response:
    """The same anew whenever it has changed."""
    key, served = caller(request, ADMIN), services(request)

    async def look() -> Look:
        data = operation_data(served)

        async def show() -> str:
            return fragment(request, "operation_live.html", data)

        # What counts requests would count this stream's own page, and change for ever.
        return Look(msgspec.json.encode((data["engines"], data["waiting"])), show)

    return live_stream(request, key, look)


def operation_data(served: Services) -> dict[str, Any]:
    """What the page tells."""
    dispatcher, recorder = served.dispatcher, served.recorder
    told = engines_told(dispatcher)
    states = [engine for group in dispatcher.engines.values() for engine in group.all]
    engines = [
        {**line, "queues": msgspec.to_builtins(state.queues), "meters": msgspec.to_builtins(state.meters)}
        for line, state in zip(told, states, strict=True)
    ]
    waiting = {
        "samples": dispatcher.n_waiting_samples,
        "jobs": served.store.read(page_lists.n_queued_jobs),
        "jobs_in_hand": len(served.desk.in_hand),
        "turns": len(recorder.waiting),
    }
    return {
        "version": __version__,
        "engines": engines,
        "worker": {"is_wanted": served.has_worker, "is_up": served.desk.worker is not None},
        "waiting": waiting,
        "machine": _machine(served),
    }


def _machine(served: Services) -> dict[str, Any]:
    disk, counts = shutil.disk_usage(served.store.folder), served.requests.counts
    segments = served.store.segments.numbers()
    routes = [
        {"route": route, "status": status, "n_requests": n, "seconds": served.requests.seconds[route, status]}
        for (route, status), n in counts.most_common(MOST_ROUTES)
    ]
    return {
        "disk": {"total_bytes": disk.total, "free_bytes": disk.free},
        "journal_segments": len(segments),
        "requests": routes,
    }


ROUTES = [page_route("/operation", operation_page), page_route("/operation/live", operation_live)]

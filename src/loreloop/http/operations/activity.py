"""What a server does now and did lately, under `/loop/v1`, for whoever runs it: `loreloop ps` and `loreloop tail`."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop import __version__
from loreloop.host.engines import EngineState
from loreloop.host.processes import processes_below
from loreloop.host.tickets import Ticket
from loreloop.http.addresses import limit_of, number_of
from loreloop.http.bodies import answer
from loreloop.http.services import ADMIN, Services, caller, now, services
from loreloop.protocol.jobs import ENDED
from loreloop.protocol.paths import owner_of
from loreloop.protocol.training import length_of
from loreloop.store import activity
from loreloop.store.keys import list_all

MOST_SHOWN = 100  # sessions, runs, samples and jobs, each
MOST_SECONDS = 20  # that somebody who watches is held
USUAL_PAGE, MAX_PAGE = 1000, 4096


async def show_activity(request: Request) -> Response:
    """Processes with their memory, what each engine has in hand, and the sessions, runs, samples and jobs that live."""
    caller(request, ADMIN)
    served = services(request)
    living = await served.store.read_apart(activity.living, MOST_SHOWN, ENDED)
    # In a thread: a machine may have thousands of processes to look through.
    processes = await asyncio.to_thread(processes_below, os.getppid())
    engines = [
        _engine(served, model, engine) for model, group in served.dispatcher.engines.items() for engine in group.all
    ]
    return answer(
        {
            "version": __version__,
            "processes": msgspec.to_builtins(processes),
            "engines": engines,
            "samples": _samples(served),
            "living": msgspec.to_builtins(living),
        }
    )


async def show_happenings(request: Request) -> Response:
    """What happened behind the number `after`; without it the last `limit`. Waits up to `seconds` for something."""
    caller(request, ADMIN)
    happenings, of = services(request).dispatcher.observers.happenings, request.query_params.get("of", "")
    limit = limit_of(request, USUAL_PAGE, MAX_PAGE)
    if "after" not in request.query_params:
        lately = happenings.newest(limit, of)
    else:
        after = number_of(request, "after")
        await happenings.wait(after, min(number_of(request, "seconds"), MOST_SECONDS))
        lately = happenings.after(after, of)
    found, more = lately.happenings[:limit], lately.happenings[limit:]
    last = found[-1].number if more else lately.last
    return answer({"happenings": msgspec.to_builtins(found), "last": last, "missed": lately.missed})


def _engine(served: Services, model: str, engine: EngineState) -> dict[str, Any]:
    """What an engine has in hand: its operations by kind and run, its samples, its queues."""
    kinds = served.store.read(activity.kinds_of, engine.executing) if engine.executing else {}
    executing = Counter((kinds.get(each, "operation"), owner_of(each)) for each in sorted(engine.executing))
    return {
        "model": model,
        "replica": engine.number,
        "outside": engine.outside,
        "up": engine.connection is not None,
        "executing": [{"kind": kind, "run": run, "operations": n} for (kind, run), n in executing.items()],
        "waiting_ops": engine.queues.waiting_ops,
        "waiting_samples": engine.queues.waiting_samples,
        "running_samples": engine.queues.running_samples,
        "deaths": engine.counts.n_deaths,
    }


def _samples(served: Services) -> list[dict[str, Any]]:
    """Samples that have not ended, the oldest first, with the names of the keys that asked."""
    unfinished = [ticket for ticket in served.dispatcher.tickets.values() if ticket.result is None]
    names = {key.id: key.name for key in served.store.read(list_all)} if unfinished else {}
    return [_sample(ticket, names.get(ticket.op.owner, "")) for ticket in unfinished[:MOST_SHOWN]]


def _sample(ticket: Ticket, key_name: str) -> dict[str, Any]:
    op = ticket.op
    return {
        "request_id": op.request_id,
        "key_name": key_name,
        "model": ticket.base_model,
        "weights": op.revision.revision_id if op.revision else "",
        "engine": ticket.engine,
        "seconds": now() - ticket.created,
        "prompt_tokens": length_of(op.prompt),
        "num_samples": op.num_samples,
    }


ROUTES = [
    Route("/activity", show_activity, methods=["GET"]),
    Route("/happenings", show_happenings, methods=["GET"]),
]

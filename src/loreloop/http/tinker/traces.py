"""Tinker routes that give out a session's timeline, for Perfetto's viewer.

The file is made when it is fetched, by a signed address without a key, as the SDK fetches it. It holds what is known
then: operations whose results are kept, and samples that are in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import defaultdict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.host.tickets import Ticket
from loreloop.http.bodies import answer
from loreloop.http.services import INFER, caller, now, services
from loreloop.protocol.errors import Forbidden
from loreloop.protocol.paths import owner_of
from loreloop.protocol.perfetto import Slice, Track, trace
from loreloop.protocol.training import Failure, length_of
from loreloop.store import sessions, timeline

LIFETIME_SECONDS = 3600


async def export(request: Request) -> Response:
    """Where the timeline of a session of the key can be fetched for an hour."""
    key, session_id = caller(request, INFER), request.path_params["session_id"]
    services(request).store.read(sessions.get, key.id, session_id)
    return answer({"status": "ready", "url": address(request, session_id)})


def address(request: Request, session_id: str) -> str:
    """Where the timeline of a session can be fetched for an hour, by whoever has the address."""
    expires = str(int(now()) + LIFETIME_SECONDS)
    signed = _signature(request, session_id, expires)
    return f"{request.base_url}api/v1/downloads/traces/{session_id}?expires={expires}&signature={signed}"


async def download(request: Request) -> Response:
    """The timeline that a signed address names. Forbidden where the signature or the time is wrong."""
    session_id, expires = request.path_params["session_id"], request.query_params.get("expires", "")
    wanted = _signature(request, session_id, expires)
    if not hmac.compare_digest(wanted.encode(), request.query_params.get("signature", "").encode()):
        raise Forbidden("The signature of this address is not one of this server; ask for a new address.")
    if not expires.isdecimal() or int(expires) < now():
        raise Forbidden("This address has expired; ask for a new one.")
    stretches = await services(request).store.read_apart(timeline.of_session, session_id)
    # Tickets change on the event loop, so they are read there; the rest takes long where there is much of it.
    moment = now()
    sampled = [
        sampled_slice(ticket, moment)
        for request_id, ticket in services(request).dispatcher.tickets.items()
        if request_id.startswith(f"{session_id}:sample:")
    ]
    body = await asyncio.to_thread(timeline_file, session_id, stretches, sampled, moment)
    name = {"content-disposition": f'attachment; filename="{session_id}.pftrace"'}
    return Response(body, media_type="application/octet-stream", headers=name)


def timeline_file(session_id: str, stretches: list[timeline.Stretch], sampled: list[Slice], moment: float) -> bytes:
    """A file with a track for each run and each sampler; what has not ended lasts until the moment."""
    slices: defaultdict[str, list[Slice]] = defaultdict(list)
    for one in stretches:
        state = {"request_id": one.request_id, "state": "pending" if one.ended is None else "ended"}
        slices[one.run_id].append(Slice(one.kind, "training", one.accepted, one.ended or moment, state))
    for each in sampled:
        slices[owner_of(each.notes["request_id"])].append(each)
    return trace(f"session {session_id}", [Track(name, tuple(each)) for name, each in slices.items()])


def sampled_slice(ticket: Ticket, moment: float) -> Slice:
    """A sample's time; of one that has not ended, until the moment."""
    result = ticket.result
    notes = {
        "request_id": ticket.op.request_id,
        "state": "pending" if result is None else "failed" if isinstance(result, Failure) else "done",
        "prompt_tokens": str(length_of(ticket.op.prompt)),
        "num_samples": str(ticket.op.num_samples),
    }
    end = ticket.ended if result is not None else moment
    return Slice("sample", "sampling", ticket.created, end, notes)


def _signature(request: Request, session_id: str, expires: str) -> str:
    return hmac.new(services(request).secret, f"trace {session_id} {expires}".encode(), hashlib.sha256).hexdigest()


ROUTES = [
    Route("/sessions/{session_id}/trace_export", export, methods=["GET"]),
    Route("/downloads/traces/{session_id}", download, methods=["GET"]),
]

"""Tinker routes that look at sessions, search them and move them between projects."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import answer, read_json
from loreloop.http.services import ADMIN, INFER, TRAIN, caller, has, services
from loreloop.http.tinker.runs import moment, page
from loreloop.protocol.rest import SearchSessions, SessionProject
from loreloop.store import runs, samplers, session_search, sessions
from loreloop.store.rows import KeyRow
from loreloop.store.session_search import SessionSummary, Wanted

REASONS = ("success", "errored", "interrupted")  # that the SDK knows


async def list_sessions(request: Request) -> Response:
    """Ids of the key's sessions by pages; `access_scope=accessible` gives an `admin` key those of all keys."""
    key = caller(request, INFER)
    limit, offset = page(request, default_limit=20)
    accessible = request.query_params.get("access_scope") == "accessible"
    ids = services(request).store.read(session_search.ids_page, visible_to(key, accessible=accessible), limit, offset)
    return answer({"sessions": ids})


async def get_session(request: Request) -> Response:
    """What a session of the key has made: ids of runs and samplers."""
    key, store = caller(request, INFER), services(request).store
    session = store.read(sessions.get, key.id, request.path_params["session_id"])
    return answer(
        {
            "training_run_ids": [run.id for run in store.read(runs.of_session, session.id)],
            "sampler_ids": [sampler.id for sampler in store.read(samplers.of_session, session.id)],
            "user_metadata": texts(session.new.user_metadata),
            "display_name": session.new.display_name,
        }
    )


async def set_project(request: Request) -> Response:
    """Moves a session of the key to a project, which needs not be made before."""
    key = caller(request, TRAIN)
    body = await read_json(request, SessionProject)
    session_id = request.path_params["session_id"]
    await services(request).store.write(session_search.set_project, key.id, session_id, body.project_id)
    return answer({})


async def search_sessions(request: Request) -> Response:
    """Sessions that match everything that is asked, the newest first, by pages."""
    key, body = caller(request, INFER), await read_json(request, SearchSessions)
    asked = body.owner.owner_urns if body.owner.type == "user" else None
    visible = visible_to(key, accessible=body.owner.type != "own")
    key_ids = visible if asked is None else tuple(one for one in asked if visible is None or one in visible)
    wanted = Wanted(
        key_ids=key_ids,
        session_id=body.session_id,
        display_name=body.display_name,
        project_ids=body.project_ids,
        user_metadata=body.user_metadata,
        statuses=wanted_statuses(body),
    )
    after = body.cursor.last_session_id if body.cursor else None
    # One more than a page has, so that the last page is known to be the last.
    found = await services(request).store.read_apart(session_search.search, wanted, body.limit + 1, after)
    rows, more = found[: body.limit], found[body.limit :]
    cursor = {"last_created_at": moment(rows[-1].created), "last_session_id": rows[-1].id} if more else None
    return answer({"sessions": [summary_json(row) for row in rows], "next_cursor": cursor})


def visible_to(key: KeyRow, *, accessible: bool) -> tuple[str, ...] | None:
    """Whose sessions a key may see: its own, or with `admin` and where it asks for all that it may, everybody's."""
    return None if accessible and has(key, ADMIN) else (key.id,)


def wanted_statuses(body: SearchSessions) -> tuple[str, ...] | None:
    """The statuses that are asked for, each reason a status of its own; None where any will do."""
    if body.statuses is None:
        return None
    return tuple(
        f"{one.type}:{reason}" if reason else one.type for one in body.statuses for reason in one.reasons or ("",)
    )


def summary_json(row: SessionSummary) -> dict[str, Any]:
    """A session as the SDK reads it; one that has expired has no status there."""
    kind, _, detail = (row.detail or "").partition(": ")
    known = {"type": kind if kind in REASONS else "success"}
    status: dict[str, Any] | None = {"type": "active"} if row.status == "active" else None
    if row.status == "finished":
        status = {"type": "client_finished", "reason": known, "detail": detail or None}
    return {
        "session_id": row.id,
        "created_at": moment(row.created),
        "owner": row.key_id,
        "project_id": row.project_id,
        "status": status,
        "checkpoints_count": row.n_checkpoints,
        "display_name": row.display_name,
        "user_metadata": texts(row.user_metadata),
        "checkpoint_storage_bytes": row.size_bytes,
    }


def texts(metadata: dict[str, Any] | None) -> dict[str, str] | None:
    """Metadata with texts alone for values, which the SDK insists on here."""
    return {name: str(value) for name, value in metadata.items()} if metadata is not None else None


ROUTES = [
    Route("/sessions/search", search_sessions, methods=["POST"]),
    Route("/sessions/{session_id}/project", set_project, methods=["PUT"]),
    Route("/sessions/{session_id}", get_session, methods=["GET"]),
    Route("/sessions", list_sessions, methods=["GET"]),
]

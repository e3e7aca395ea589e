"""Tinker routes of whoever answers for a server: what was done with checkpoints, what was used, what is kept.

Costs are left out, since nothing here has a price.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.audited import DAY_SECONDS
from loreloop.http.bodies import answer
from loreloop.http.services import ADMIN, caller, services
from loreloop.http.tinker.runs import moment
from loreloop.http.tinker.session_lists import texts
from loreloop.protocol.errors import BadRequest
from loreloop.store import accounts, audit
from loreloop.store.account_rows import HOUR_SECONDS, AuditEntry, Used

THINGS = {"all": None, "checkpoints": "checkpoint", "keys": "key", "deployments": "deployment"}
NEVER = ("projects", "teams", "organizations")  # what the SDK asks for and no server of ours has
MOST_DAYS = 14
GIGABYTE = 10**9


async def audit_log(request: Request) -> Response:
    """What happened on one day (UTC), in its order; `event_type` names one kind of thing."""
    caller(request, ADMIN)
    kind = request.query_params.get("event_type", "all")
    if kind in NEVER:
        return answer({"entries": []})
    if kind not in THINGS:
        raise BadRequest(f"The event_type {kind[:80]!r} is unknown; it is one of {', '.join((*THINGS, *NEVER))}.")
    first = day_of(request.query_params.get("day")).timestamp()
    # In seconds, since the last day that a date can name has no next one.
    found = await services(request).store.read_apart(audit.between, first, first + DAY_SECONDS, THINGS[kind])
    return answer({"entries": [entry_json(entry) for entry in found]})


def day_of(text: str | None) -> datetime:
    """The beginning of a day in UTC, of today where none is named; BadRequest where it is no date."""
    try:
        day = datetime.now(UTC) if text is None else datetime.strptime(text, "%Y-%m-%d")
    except ValueError:
        raise BadRequest(f"The day {str(text)[:40]!r} is no date; write it as 2026-01-31.") from None
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def entry_json(entry: AuditEntry) -> dict[str, Any]:
    """An entry as the SDK reads it."""
    details = {"key_id": entry.key_id, **entry.details}
    path, purpose = entry.details.get("tinker_path"), entry.details.get("purpose")
    return {
        "timestamp": moment(entry.created),
        "event": entry.event,
        "event_details": details,
        "tinker_path": path,
        "purpose": purpose,
    }


async def usage_events(request: Request) -> Response:
    """Tokens by hour, session and base model, and the checkpoints that were saved."""
    caller(request, ADMIN)
    first, end = hour_in(request, "starting_on"), hour_in(request, "ending_before")
    if not first < end <= first + MOST_DAYS * 24:
        raise BadRequest(f"ending_before must lie after starting_on, by {MOST_DAYS} days at most.")
    found = await services(request).store.read_apart(accounts.between, first, end)
    data = [event for used in found for event in events_of(used)]
    of_sessions = {used.account.session_id: {"user_metadata": texts(used.user_metadata)} for used in found}
    of_sessions.pop("", None)
    return answer({"data": data, "sessions": of_sessions, "cost_data_through": None})


def hour_in(request: Request, name: str) -> int:
    """The hour, counted from the epoch, that a parameter names; BadRequest unless it is a full hour with its zone."""
    text = request.query_params.get(name, "")
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"{name} is {text[:40]!r}; write a moment as 2026-01-31T13:00:00Z.") from None
    if found.tzinfo is None or found.timestamp() % HOUR_SECONDS:
        raise BadRequest(f"{name} is {text[:40]!r}; it must be a full hour, with its zone.")
    return accounts.hour_of(found.timestamp())


def events_of(used: Used) -> Iterator[dict[str, Any]]:
    """What one account has used, one event a kind; kinds of which there is nothing are left out."""
    account, spent = used.account, used.spent
    envelope = {
        "bucket_start": moment(account.hour * HOUR_SECONDS),
        "bucket_end": moment((account.hour + 1) * HOUR_SECONDS),
        "base_model": account.base_model,
        "user_id": account.key_id,
        "user_name": used.key_name,
        "session_id": account.session_id or None,
        "project_id": used.project_id,
    }
    kinds = (
        ({"type": "training"}, "token_count", spent.trained_tokens),
        ({"type": "sampling_prefill", "cached": False}, "token_count", spent.prompt_tokens),
        ({"type": "sampling_prefill", "cached": True}, "token_count", spent.cached_tokens),
        ({"type": "sampling_sample"}, "token_count", spent.generated_tokens),
        ({"type": "checkpoint"}, "count", spent.n_checkpoints),
    )
    for kind, unit, amount in kinds:
        if amount:
            yield envelope | {"event_info": kind | {unit: amount}}


async def stored_now(request: Request) -> Response:
    """Checkpoints that are kept now, by project and key."""
    caller(request, ADMIN)
    found = await services(request).store.read_apart(accounts.stored, request.query_params.get("project_id"))
    data = [
        {
            "project_id": one.project_id,
            "org_user_urn": one.key_id,
            "user_name": one.key_name,
            "checkpoint_count": one.n_checkpoints,
            "size_bytes": one.size_bytes,
            "size_gigabytes": one.size_bytes / GIGABYTE,
        }
        for one in found
    ]
    return answer({"data": data})


ROUTES = [
    Route("/audit", audit_log, methods=["GET"]),
    Route("/billing/usage/events", usage_events, methods=["GET"]),
    Route("/billing/usage/checkpoints/current", stored_now, methods=["GET"]),
]

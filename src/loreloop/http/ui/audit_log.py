"""The page of the audit log, a day at a time."""

from __future__ import annotations

from datetime import datetime, timedelta

from starlette.requests import Request
from starlette.responses import Response

from loreloop.http.audited import DAY_SECONDS
from loreloop.http.services import ADMIN, caller, services
from loreloop.http.tinker.accounts import day_of, entry_json
from loreloop.http.ui.frame import page_route
from loreloop.http.ui.rendering import render
from loreloop.store import audit

MOST_ENTRIES = 1000


async def audit_page(request: Request) -> Response:
    """What was done with checkpoints, keys and deployments on one day (UTC), the newest first."""
    caller(request, ADMIN)
    day = day_of(request.query_params.get("day") or None)
    first = day.timestamp()
    found = await services(request).store.read_apart(audit.between, first, first + DAY_SECONDS, None)
    entries = [entry_json(entry) for entry in reversed(found[-MOST_ENTRIES:])]
    data = {"day": f"{day:%Y-%m-%d}", "before": before(day), "entries": entries}
    return render(request, "audit.html", data | {"n_entries": len(found)})


def before(day: datetime) -> str | None:
    """The day before as an address names it; None before the first one of the calendar."""
    try:
        return f"{day - timedelta(days=1):%Y-%m-%d}"
    except OverflowError:
        return None


ROUTES = [page_route("/audit", audit_page)]

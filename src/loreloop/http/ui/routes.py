"""All pages; what is none of them is answered as a page too."""

from __future__ import annotations

from starlette.routing import Route

from loreloop.http.ui import (
    audit_log,
    deployments,
    files,
    jobs,
    keys,
    memories,
    operation,
    playground,
    runs,
    sign_in,
    steps,
)

ROUTES: list[Route] = [
    *sign_in.ROUTES,
    *files.ROUTES,
    *runs.ROUTES,
    *steps.ROUTES,
    *jobs.ROUTES,
    *deployments.ROUTES,
    *memories.ROUTES,
    *playground.ROUTES,
    *operation.ROUTES,
    *keys.ROUTES,
    *audit_log.ROUTES,
    *files.LAST_ROUTES,
]

"""Whether the server is up. It and `metrics` need no key."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import answer


async def healthz(request: Request) -> Response:
    return answer({"status": "ok"})


ROUTES = [Route("/healthz", healthz, methods=["GET"])]

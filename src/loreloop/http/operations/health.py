"""Whether the server is up. It and `metrics` need no key."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop import __version__
from loreloop.host.server_plan import NONCE
from loreloop.http.bodies import answer
from loreloop.http.services import services


async def healthz(request: Request) -> Response:
    """That the server is up, and its version; the header holds the nonce of this start."""
    response = answer({"status": "ok", "version": __version__})
    response.headers[NONCE] = services(request).nonce  # the operator's command line looks whose address this is
    return response


ROUTES = [Route("/healthz", healthz, methods=["GET"])]

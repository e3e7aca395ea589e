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
    """That the server is up, its version, and the precision of its engines, once one has said it; the header holds the
    nonce of this start."""
    dispatcher = services(request).dispatcher
    # All engines have the same settings and the same machine, so the first one that is there speaks for all.
    info = next(filter(None, map(dispatcher.known_info, dispatcher.engines)), None)
    precision = {"precision": info.precision} if info else {}
    response = answer({"status": "ok", "version": __version__} | precision)
    response.headers[NONCE] = services(request).nonce  # the operator's command line looks whose address this is
    return response


ROUTES = [Route("/healthz", healthz, methods=["GET"])]

"""Whether the server is up. It and `metrics` need no key."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop import __version__
from loreloop.host.dispatcher import Dispatcher
from loreloop.host.engines import EngineState
from loreloop.host.server_plan import NONCE
from loreloop.http.bodies import answer
from loreloop.http.services import services


async def healthz(request: Request) -> Response:
    """That the server is up, its version, the precision of its engines, once one has said it, and what each engine has
    in hand; the header holds the nonce of this start."""
    dispatcher = services(request).dispatcher
    # All engines have the same settings and the same machine, so the first one that is there speaks for all.
    info = next(filter(None, map(dispatcher.known_info, dispatcher.engines)), None)
    precision = {"precision": info.precision} if info else {}
    engines = engines_told(dispatcher)
    response = answer({"status": "ok", "version": __version__, "engines": engines} | precision)
    response.headers[NONCE] = services(request).nonce  # the operator's command line looks whose address this is
    return response


def engines_told(dispatcher: Dispatcher) -> list[dict[str, object]]:
    """Every engine in a row, those of a model by their numbers."""
    return [_told(model, engine) for model, group in dispatcher.engines.items() for engine in group.all]


def _told(model: str, engine: EngineState) -> dict[str, object]:
    """An engine in a row: `replica` 0 is the one that trains."""
    queues = engine.queues
    return {
        "model": model,
        "replica": engine.number,
        "outside": engine.outside,
        "up": engine.connection is not None,
        "deaths": engine.counts.n_deaths,
        "samples": engine.n_samples,  # given to it, and not ended
        "waiting_ops": queues.waiting_ops,
    }


ROUTES = [Route("/healthz", healthz, methods=["GET"])]

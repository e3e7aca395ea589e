"""The metrics of a deployment under `/loop/v1`: those that it declares, beside those that every one has."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import answer, read_body
from loreloop.http.loop.access import managed_deployment
from loreloop.http.loop.sizes import MOST_OTHER_BYTES
from loreloop.http.services import Services, services
from loreloop.protocol.feedback import BUILT_IN
from loreloop.protocol.feedback_rules import declared_metrics
from loreloop.store import metrics


async def get_metrics(request: Request) -> Response:
    """The metrics by which feedback on this deployment may be given."""
    return answer(metrics_json(services(request), managed_deployment(request).name))


async def set_metrics(request: Request) -> Response:
    """Declares the metrics of a TOML file, or of its JSON form, in the place of those before."""
    name = managed_deployment(request).name
    found = declared_metrics(await read_body(request, MOST_OTHER_BYTES))
    await services(request).store.write(metrics.declare, name, found)
    return answer(metrics_json(services(request), name))


def metrics_json(served: Services, name: str) -> dict[str, Any]:
    """Both kinds of metrics by their names."""
    declared = served.store.read(metrics.of_deployment, name)
    built_in = {each: metric for each, metric in BUILT_IN.items() if each not in declared}
    return {"metrics": msgspec.to_builtins(declared), "built_in": msgspec.to_builtins(built_in)}


ROUTES = [
    Route("/deployments/{name}/metrics", get_metrics, methods=["GET"]),
    Route("/deployments/{name}/metrics", set_metrics, methods=["PUT"]),
]

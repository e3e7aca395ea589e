"""Where the loop of a deployment stands: told by the loop, looked at by whoever manages the deployment."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import answer, read_json
from loreloop.http.loop.access import managed_deployment
from loreloop.http.services import now, services
from loreloop.protocol.errors import NotFound
from loreloop.protocol.loop_rest import LoopStanding

MOST_BYTES = 256 << 10


async def tell_standing(request: Request) -> Response:
    """Takes the place of what the loop has told before."""
    name = managed_deployment(request).name
    services(request).standings.tell(name, await read_json(request, LoopStanding, MOST_BYTES), now())
    return answer({})


async def get_standing(request: Request) -> Response:
    """What the loop has told last, with the looks at its candidate."""
    name = managed_deployment(request).name
    told = services(request).standings.told.get(name)
    if told is None:
        raise NotFound(f"No loop has told of {name!r} since this server began; `loreloop loop run` does.")
    return answer(msgspec.to_builtins(told))


ROUTES = [
    Route("/deployments/{name}/standing", get_standing, methods=["GET"]),
    Route("/deployments/{name}/standing", tell_standing, methods=["PUT"]),
]

"""stub"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import answer
from loreloop.http.services import INFER, caller, services


async def models(request: Request) -> Response:
    caller(request, INFER)
    data = [{"id": name, "object": "model", "owned_by": "loreloop"} for name in services(request).names.all()]
    return answer({"object": "list", "data": data})


ROUTES = [Route("/models", models, methods=["GET"])]

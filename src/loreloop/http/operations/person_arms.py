"""Weights of one person in a deployment, under `/loop/v1`: looked at, set after they have answered once, taken away."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.addresses import limit_of
from loreloop.http.bodies import answer, read_json
from loreloop.http.operations.deployments import name_of, rollout
from loreloop.http.services import TRAIN, caller, services
from loreloop.protocol.loop_rest import SetPerson
from loreloop.store import person_arms
from loreloop.store.rows import PersonArm


async def list_persons(request: Request) -> Response:
    """The persons of a deployment who have weights of their own, the newest first."""
    change = rollout(request, caller(request, TRAIN))
    change.managed(name_of(request))
    found = services(request).store.read(person_arms.list_page, name_of(request), limit_of(request))
    return answer({"persons": [arm_json(row) for row in found]})


async def get_person(request: Request) -> Response:
    """What answers one person of a deployment; NotFound where its shared weights do."""
    change = rollout(request, caller(request, TRAIN))
    person = await change.person_of(name_of(request), user_of(request), request.query_params.get("key"))
    found = services(request).store.read(person_arms.get, name_of(request), person)
    return answer(arm_json(found))


async def set_person(request: Request) -> Response:
    """Lets these weights answer one person from now on, after they have answered once."""
    change = rollout(request, caller(request, TRAIN))
    wanted = await read_json(request, SetPerson)
    return answer(arm_json(await change.set_person(name_of(request), user_of(request), wanted)))


async def remove_person(request: Request) -> Response:
    """Lets the shared weights answer a person again."""
    change = rollout(request, caller(request, TRAIN))
    person = await change.person_of(name_of(request), user_of(request), request.query_params.get("key"))
    await services(request).store.write(person_arms.remove, name_of(request), person)
    return answer({})


def user_of(request: Request) -> str:
    """The user in the request's path."""
    return str(request.path_params["user"])


def arm_json(row: PersonArm) -> dict[str, Any]:
    """What answers a person, as clients read it; `created` is in seconds since the epoch."""
    return {
        "user": row.person.user,
        "key": row.person.key_id,
        "target": row.arm.target,
        "created": row.created,
        "by": row.by,
    }


ROUTES = [
    Route("/deployments/{name}/persons", list_persons, methods=["GET"]),
    Route("/deployments/{name}/persons/{user:path}", get_person, methods=["GET"]),
    Route("/deployments/{name}/persons/{user:path}", set_person, methods=["PUT"]),
    Route("/deployments/{name}/persons/{user:path}", remove_person, methods=["DELETE"]),
]

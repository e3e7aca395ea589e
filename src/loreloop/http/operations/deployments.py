"""Deployments under `/loop/v1`: looked at, changed, rolled back, deleted. New weights answer once before they count."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.deployments.rollout import Rollout
from loreloop.http.addresses import limit_of
from loreloop.http.bodies import answer, read_json
from loreloop.http.services import ADMIN, TRAIN, Services, asker, caller, has, services
from loreloop.protocol.errors import BadRequest, ServerError, Unavailable
from loreloop.protocol.loop_rest import SetDeployment
from loreloop.protocol.sampling import SampleOp, SamplingParams
from loreloop.protocol.token_ids import pack_ids
from loreloop.protocol.training import Failure, TextChunk
from loreloop.store import deployments
from loreloop.store.rows import Arm, Deployment, KeyRow

WARM_SECONDS = 120.0


async def list_deployments(request: Request) -> Response:
    """The deployments that the key may see, by pages in the order of their names; an admin key sees all."""
    key, served = asker(request), services(request)
    limit, after = limit_of(request), request.query_params.get("after", "")
    # Only an admin key lists the deployments of other keys.
    if has(key, ADMIN):
        found = served.store.read(deployments.all, limit, after)
    else:
        owner_id = key.id if has(key, TRAIN) else None
        found = served.store.read(deployments.of_key, owner_id, key.deployments, limit, after)
    return answer({"deployments": [deployment_json(row) for row in found]})


async def get_deployment(request: Request) -> Response:
    """The current version of a deployment; NotFound where the key may not know of it."""
    return answer(deployment_json(rollout(request, asker(request)).visible(name_of(request))))


async def get_history(request: Request) -> Response:
    """The versions of a deployment, the newest first."""
    # The history is behind the same question as the deployment itself: may this key know of it?
    rollout(request, asker(request)).visible(name_of(request))
    found = services(request).store.read(deployments.history, name_of(request), limit_of(request))
    return answer({"deployments": [deployment_json(row) for row in found]})


async def set_deployment(request: Request) -> Response:
    """Makes a new version of a deployment, after its weights have answered once."""
    change = rollout(request, caller(request, TRAIN))
    wanted = await read_json(request, SetDeployment)
    return answer(deployment_json(await change.set(name_of(request), wanted)))


async def roll_back(request: Request) -> Response:
    """Makes the version before the current one the newest again."""
    change = rollout(request, caller(request, TRAIN))
    change.visible(name_of(request))
    return answer(deployment_json(await change.rollback(name_of(request))))


async def delete_deployment(request: Request) -> Response:
    """Deletes a deployment with its history."""
    await rollout(request, caller(request, TRAIN)).remove(name_of(request))
    services(request).standings.forget(name_of(request))
    return answer({})


def rollout(request: Request, key: KeyRow) -> Rollout:
    """The changes that this key may make to deployments, with a way to try weights on the engine."""
    served = services(request)

    async def warm(arm: Arm) -> None:
        # The trial runs in the name of the key that changes the deployment, and so shares its turn with that key's
        # samples.
        await answer_once(served, key, arm)

    return Rollout(
        store=served.store, names=served.names, key=key, is_admin=has(key, ADMIN), is_owner=has(key, TRAIN), warm=warm
    )


async def answer_once(served: Services, key: KeyRow, arm: Arm) -> None:
    """Has the engine load these weights and draw one token; raises where that does not come about."""
    base_model = served.names.base(arm.base_model)
    # Any token will do: what counts is that the adapter is loaded and one step is computed with it.
    prompt = (TextChunk(pack_ids([0])),)
    op = SampleOp(
        request_id=f"warm-{uuid.uuid4().hex}",
        owner=key.id,
        revision=arm.revision,
        prompt=prompt,
        num_samples=1,
        params=SamplingParams(max_tokens=1, seed=0),
    )
    try:
        served.dispatcher.sample(op, base_model)
        result = await served.dispatcher.sample_result(op.request_id, WARM_SECONDS)
    finally:
        served.dispatcher.forget(op.request_id)
    unchanged = f"Nothing was changed, since {arm.target} does not answer"
    if result is None:
        raise Unavailable(f"{unchanged} within {WARM_SECONDS:g} s; try again when the server has less to do.")
    if isinstance(result, Failure):
        # The weights may be at fault, or the server; who deploys should hear which.
        raise (BadRequest if result.category == "user" else ServerError)(f"{unchanged}: {result.message}")


def name_of(request: Request) -> str:
    """The deployment's name in the request's path."""
    return str(request.path_params["name"])


def deployment_json(row: Deployment) -> dict[str, Any]:
    """A version of a deployment as clients read it; `created` is in seconds since the epoch."""
    return {
        "name": row.name,
        "version": row.version,
        "target": row.split.main.target,
        "canary": row.split.canary.target if row.split.canary else None,
        "canary_percent": row.split.canary_percent,
        "owner": row.key_id,
        "created": row.created,
        "by": row.by,
        "recording": msgspec.to_builtins(row.recording),
    }


ROUTES = [
    Route("/deployments", list_deployments, methods=["GET"]),
    Route("/deployments/{name}", get_deployment, methods=["GET"]),
    Route("/deployments/{name}", set_deployment, methods=["PUT"]),
    Route("/deployments/{name}", delete_deployment, methods=["DELETE"]),
    Route("/deployments/{name}/history", get_history, methods=["GET"]),
    Route("/deployments/{name}/rollback", roll_back, methods=["POST"]),
]

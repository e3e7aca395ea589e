"""Who may look at what was recorded: the owner of a deployment at all its turns, a key at those it asked for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import msgspec
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from loreloop.http.services import ADMIN, TRAIN, Services, asker, caller, has, services
from loreloop.protocol.episodes import Person, Turn
from loreloop.protocol.errors import Forbidden, NotFound
from loreloop.store import deployments, turns
from loreloop.store.rows import Deployment, KeyRow
from loreloop.store.turns import Reader

P = ParamSpec("P")
T = TypeVar("T")


def managed_deployment(request: Request) -> Deployment:
    """The deployment that the path names, for its owner and for admin keys alone: its turns are other people's words.
    NotFound for everybody else."""
    key, name = caller(request, TRAIN), str(request.path_params["name"])
    found = services(request).store.read(deployments.find, name)
    if found is None or not manages(key, found):
        raise NotFound(f"There is no deployment {name!r} of this key; `loreloop deploy list` shows all.")
    return found


def manages(key: KeyRow, deployment: Deployment) -> bool:
    """Whether a key may read and mark all that a deployment has recorded."""
    return has(key, ADMIN) or (has(key, TRAIN) and deployment.key_id == key.id)


def reader_of(key: KeyRow) -> Reader:
    """Which turns a key may read; the rule of `manages` for lists."""
    return Reader(key.id, owns=has(key, TRAIN), reads_all=has(key, ADMIN))


def visible_turn(request: Request) -> Turn:
    """The turn that the path names, for who asked for it and who manages its deployment; NotFound for others."""
    key, turn_id = asker(request), str(request.path_params["turn_id"])
    store = services(request).store
    turn = store.read(turns.find, turn_id)
    if turn is not None and turn.person.key_id != key.id:
        deployment = store.read(deployments.find, turn.deployment)
        turn = turn if deployment is not None and manages(key, deployment) else None
    if turn is None:
        where = services(request).recorder.whereabouts(turn_id)
        wait = (
            "it is being written; ask again in a second" if where == "pending" else "it was never recorded, or deleted"
        )
        raise NotFound(f"There is no turn {turn_id[:80]!r} of this key: {wait}.")
    return turn


def person_in(request: Request) -> Person:
    """The person that path and query name: a user of the asking key, or with `?key=`, for admins, of another one."""
    key = asker(request)
    key_id = request.query_params.get("key", key.id)
    if key_id != key.id and not has(key, ADMIN):
        raise Forbidden(f"The persons of the key {key_id[:40]!r} are its own; leave key out, or ask with an admin key.")
    return Person(key_id, str(request.path_params["user"]))


async def read_apart(
    served: Services, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """What a query gives that may read much: in a thread, on a connection of its own, so that nobody waits for it."""
    return await served.store.read_apart(function, *args, **kwargs)


async def answer_apart(value: object) -> Response:
    """A large answer as JSON, encoded in a thread."""
    data = await asyncio.to_thread(msgspec.json.encode, value)
    return Response(data, media_type="application/json")

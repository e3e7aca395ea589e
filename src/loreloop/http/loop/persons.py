"""Persons under `/loop/v1`: what is kept of one is given out or deleted, and a deployment is told who was."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from loreloop.http.addresses import limit_of
from loreloop.http.bodies import answer
from loreloop.http.generation.marks import check_user
from loreloop.http.loop.access import managed_deployment, person_in
from loreloop.http.services import now, services
from loreloop.store import deleted, persons


async def export_person(request: Request) -> Response:
    """Everything that is kept of a person, also what nobody may learn from."""
    pieces = persons.export(persons.reads_of(services(request).store.engine), person_in(request))
    # Each piece is made in a thread when the one before has been sent, so that memory holds a page and no more.
    return StreamingResponse(pieces, media_type="application/json")


async def delete_person(request: Request) -> Response:
    """Deletes everything that is kept of a person, and tells which candidates were trained on it. Nothing of this
    person is recorded from now on."""
    person = person_in(request)
    check_user(person.user)  # each who is deleted is remembered, and a longer name is nobody's
    # What waits is then found to be a deleted person's when its batch is written.
    gone = await services(request).store.write(persons.forget, person, now())
    return answer({"user": person.user, "key": person.key_id} | msgspec.to_builtins(gone))


async def deleted_persons(request: Request) -> Response:
    """Who was deleted of those whose keys ask this deployment, by pages."""
    found, after = managed_deployment(request), request.query_params.get("after", "")
    return answer(services(request).store.read(deleted.page, found.name, after, limit_of(request)))


ROUTES = [
    Route("/persons/{user:path}/export", export_person, methods=["GET"]),
    Route("/persons/{user:path}", delete_person, methods=["DELETE"]),
    Route("/deployments/{name}/deleted-persons", deleted_persons, methods=["GET"]),
]

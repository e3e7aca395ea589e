"""Feedback under `/loop/v1`: given, looked at, retracted, read as a feed; and TensorZero's `POST /feedback`."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.addresses import limit_of, number_of
from loreloop.http.bodies import answer, read_json
from loreloop.http.loop.access import answer_apart, managed_deployment, read_apart
from loreloop.http.loop.sizes import MOST_BYTES, MOST_OTHER_BYTES, MOST_PUBLIC_BYTES
from loreloop.http.loop.speakers import any_speaker, giving, key_speaker, new_token
from loreloop.http.loop.tensorzero import as_ours
from loreloop.http.services import now, services
from loreloop.protocol.errors import NotFound
from loreloop.protocol.feedback_rest import GiveFeedback, NewToken, TensorZeroFeedback
from loreloop.store import deployments, feedback

USUAL_PAGE, MAX_PAGE = 100, 1000


async def give_feedback(request: Request) -> Response:
    """Keeps one statement about a turn or an episode, and says what became of it."""
    speaker = giving(request).admit(any_speaker(request))
    most_bytes = MOST_PUBLIC_BYTES if speaker.channel else MOST_BYTES
    return allowed(request, await giving(request).give(speaker, await read_json(request, GiveFeedback, most_bytes)))


async def preflight(request: Request) -> Response:
    """What a browser asks before a page of another origin may send feedback. The token, which says whether this one
    may, comes with the feedback itself."""
    headers = {
        "access-control-allow-origin": request.headers.get("origin", "*"),
        "access-control-allow-methods": "POST, DELETE",
        "access-control-allow-headers": "authorization, content-type",
        "access-control-max-age": "600",
        "vary": "Origin",
    }
    return Response(status_code=204, headers=headers)


async def get_feedback(request: Request) -> Response:
    """One statement as it stands, with whether it counts."""
    speaker = giving(request).admit(key_speaker(request))
    found = giving(request).given(speaker, str(request.path_params["id"]))
    counts = services(request).store.read(feedback.counts, found.id)
    return answer(msgspec.to_builtins(found) | {"counts": counts})


async def retract_feedback(request: Request) -> Response:
    """Takes a statement back; it stays in the feed, retracted."""
    speaker = giving(request).admit(any_speaker(request))
    return allowed(request, msgspec.to_builtins(await giving(request).retract(speaker, str(request.path_params["id"]))))


async def feedback_feed(request: Request) -> Response:
    """What was said about a deployment's answers, from a number on, in the order in which it came."""
    name = managed_deployment(request).name
    after, limit = number_of(request, "after"), limit_of(request, USUAL_PAGE, MAX_PAGE)
    return await answer_apart(await read_apart(services(request), feedback.page, name, after, limit))


async def tensorzero_feedback(request: Request) -> Response:
    """Takes the body of TensorZero's gateway, and answers as it does."""
    speaker = giving(request).admit(key_speaker(request))
    body = as_ours(await read_json(request, TensorZeroFeedback, MOST_BYTES), giving(request).desk.targets)
    return answer({"feedback_id": (await giving(request).give(speaker, body))["id"]})


async def make_token(request: Request) -> Response:
    """A token with which pages give feedback on one deployment, shown once."""
    speaker = giving(request).admit(key_speaker(request))
    wanted = await read_json(request, NewToken, MOST_OTHER_BYTES)
    # A key asks for what it may do itself: feedback on all answers of the deployment, whoever asked.
    is_there = services(request).store.read(deployments.find, wanted.deployment) is not None
    if not (is_there and giving(request).may_speak_of(speaker, wanted.deployment, "")):
        raise NotFound(f"There is no deployment {wanted.deployment[:80]!r} on which this key may give feedback.")
    made = new_token(services(request), speaker.key, wanted)
    return answer({"token": made, "deployment": wanted.deployment, "expires": int(now()) + wanted.expires_seconds})


def allowed(request: Request, value: dict[str, Any]) -> Response:
    """An answer with what lets a page of another origin read it, where it may."""
    response = answer(value)
    response.headers.update(request.scope["state"].get("headers", {}))
    return response


ROUTES = [
    Route("/feedback", give_feedback, methods=["POST"]),
    Route("/feedback", preflight, methods=["OPTIONS"]),
    Route("/feedback/{id}", get_feedback, methods=["GET"]),
    Route("/feedback/{id}", retract_feedback, methods=["DELETE"]),
    Route("/feedback/{id}", preflight, methods=["OPTIONS"]),
    Route("/feedback-tokens", make_token, methods=["POST"]),
    Route("/deployments/{name}/feedback", feedback_feed, methods=["GET"]),
]
TENSORZERO = [Route("/feedback", tensorzero_feedback, methods=["POST"])]

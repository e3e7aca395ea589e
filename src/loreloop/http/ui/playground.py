"""The playground: two models, or two revisions of one, are asked the same and answer side by side, as they write."""

from __future__ import annotations

from itertools import islice

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from loreloop.http.bodies import answer, read_json
from loreloop.http.loop.sizes import MOST_PUBLIC_BYTES
from loreloop.http.loop.speakers import giving, key_speaker
from loreloop.http.openai.chat_completions import chat_completions
from loreloop.http.openai.models import entries
from loreloop.http.services import FEEDBACK, Services, asker, has, services
from loreloop.http.ui.deployments import deployments_seen
from loreloop.http.ui.frame import page_route
from loreloop.http.ui.rendering import render
from loreloop.http.ui.visits import TOKEN_HEADER, check_origin, check_token
from loreloop.protocol.feedback import THUMB
from loreloop.protocol.feedback_rest import GiveFeedback, Id
from loreloop.store.rows import KeyRow

OFFERED = 200  # names; any other may be typed


async def playground_page(request: Request) -> Response:
    """The form, with the names that the key may ask."""
    key = asker(request)
    names = [entry["id"] for entry in islice(entries(services(request), key, "", OFFERED), OFFERED)]
    asked = [request.query_params.get(side, "") for side in ("left", "right")]
    chosen = [name or (names[0] if names else "") for name in asked]
    data = {"models": names, "left": chosen[0], "right": chosen[1], "judged": await judged(services(request), key)}
    return render(request, "playground.html", data)


async def judged(served: Services, key: KeyRow) -> list[str]:
    """The deployments of whose answers this key may say whether they are good: those that record, if it may judge."""
    found = await deployments_seen(served.store, key, OFFERED, "")
    may_all = has(key, FEEDBACK)
    return [one.name for one in found if one.recording.record and (may_all or one.name in key.judged)]


async def ask(request: Request) -> Response:
    """Answers a conversation as OpenAI's route does, which it is; the page's script asks once for each side."""
    asker(request)
    check_from_here(request)
    return await chat_completions(request)


class Thumb(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether an answer is good, by the id of its completion."""

    target_id: Id
    value: bool


async def judge_answer(request: Request) -> Response:
    """A thumb, kept as any feedback is: for the deployment's page, and for what learns from it."""
    check_from_here(request)
    speaker = giving(request).admit(key_speaker(request))
    thumb = await read_json(request, Thumb, MOST_PUBLIC_BYTES)
    said = GiveFeedback(target_id=thumb.target_id, metric=THUMB, value=thumb.value, tags={"from": "playground"})
    return answer(await giving(request).give(speaker, said))


def check_from_here(request: Request) -> None:
    """Forbidden for what a script of another site sends in the name of a visit."""
    if request.scope["state"].get("visit") is not None:
        check_origin(request)
        check_token(request, request.headers.get(TOKEN_HEADER, ""))


ROUTES = [
    page_route("/playground", playground_page),
    page_route("/playground/chat", ask, "POST"),
    page_route("/playground/thumb", judge_answer, "POST"),
]

"""The playground: two models, or two revisions of one, are asked the same and answer side by side, as they write."""

from __future__ import annotations

from itertools import islice

from starlette.requests import Request
from starlette.responses import Response

from loreloop.http.openai.chat_completions import chat_completions
from loreloop.http.openai.models import entries
from loreloop.http.services import asker, services
from loreloop.http.ui.frame import page_route
from loreloop.http.ui.rendering import render
from loreloop.http.ui.visits import TOKEN_HEADER, check_origin, check_token

OFFERED = 200  # names; any other may be typed


async def playground_page(request: Request) -> Response:
    """The form, with the names that the key may ask."""
    key = asker(request)
    names = [entry["id"] for entry in islice(entries(services(request), key, "", OFFERED), OFFERED)]
    asked = [request.query_params.get(side, "") for side in ("left", "right")]
    chosen = [name or (names[0] if names else "") for name in asked]
    return render(request, "playground.html", {"models": names, "left": chosen[0], "right": chosen[1]})


async def ask(request: Request) -> Response:
    """Answers a conversation as OpenAI's route does, which it is; the page's script asks once for each side."""
    asker(request)
    if request.scope["state"].get("visit") is not None:
        check_origin(request)
        check_token(request, request.headers.get(TOKEN_HEADER, ""))
    return await chat_completions(request)


ROUTES = [page_route("/playground", playground_page), page_route("/playground/chat", ask, "POST")]

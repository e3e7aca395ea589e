"""What stands around every page: the visit's key for the routes, errors told by pages, and the headers.

A page that there is not and one that this key may not see are answered alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.ui.rendering import HEADERS, fragment, render, wants_json
from loreloop.http.ui.visits import as_key
from loreloop.protocol.errors import NotFound, Unauthorized

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
NOTHING = "There is nothing at this address that this key may see; the links above lead to what there is."


def framed(endpoint: Endpoint) -> Endpoint:
    """The endpoint as a page of this room."""

    @wraps(endpoint)
    async def page(request: Request) -> Response:
        # A route that only looks tells every absence alike; what a form could not do is told in its own words.
        is_look = request.method in ("GET", "HEAD")
        asked = as_key(request)
        _tell_by_page(asked)
        try:
            response = await endpoint(asked)
        except Unauthorized as error:
            if wants_json(asked):
                raise
            response = sign_in_page(asked, "" if is_look else error.message, 401)
        except NotFound:
            if not is_look:
                raise
            raise NotFound(NOTHING) from None
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return page


def sign_in_page(request: Request, trouble: str, status: int = 200, *, wanted: str | None = None) -> Response:
    """The form that asks for a key; it leads back to the page that was wanted, by its own address unless told."""
    own = str(request.url.path) + (f"?{request.url.query}" if request.url.query else "")
    address = safe_address(own if wanted is None else wanted)
    return render(request, "sign_in.html", {"trouble": trouble, "wanted": address}, status=status)


def safe_address(text: str) -> str:
    """An address of a page of this room that a form may lead to; the first page for any other text."""
    # Behind the question mark two slashes are those of a checkpoint's path.
    is_own = text.startswith("/ui/") and text.isprintable() and "\\" not in text and "//" not in text.partition("?")[0]
    return text if is_own and "/sign-" not in text else "/ui/"


def page_route(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
    """A route to a page."""
    return Route(path, framed(endpoint), methods=[method])


def _tell_by_page(request: Request) -> None:
    state = request.scope["state"]
    state["headers"] = HEADERS
    if not wants_json(request):
        state["page_of"] = lambda message: fragment(request, "trouble.html", {"message": message})

"""A visit begins with a key and ends when its visitor signs out."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from loreloop.http.services import found_key
from loreloop.http.ui.frame import page_route, safe_address, sign_in_page
from loreloop.http.ui.visits import begin, check_origin, end, fields_of, form, put_cookie

UNKNOWN_KEY = "This key is not one of this server, or was revoked, or has expired; loreloop keys create makes one."


async def show_sign_in(request: Request) -> Response:
    """The form that asks for a key."""
    return sign_in_page(request, "")


async def sign_in(request: Request) -> Response:
    """Begins a visit. Only a key itself begins one: what merely stands for a key would outlive its end by it."""
    # Else another site could sign a visitor in with a key of its own, and read what they do with it.
    check_origin(request)
    fields = await fields_of(request)
    secret, wanted = fields.get("key", [""])[0].strip(), fields.get("wanted", [""])[0]
    key = found_key(request, secret)
    if key is None:
        return sign_in_page(request, UNKNOWN_KEY, 401, wanted=wanted)
    response = RedirectResponse(safe_address(wanted), 303)
    put_cookie(request, response, begin(key))
    return response


async def sign_out(request: Request) -> Response:
    """Ends the visit."""
    # Also where no visit came along: another site's form comes without the cookie, and must not take it away.
    check_origin(request)
    visit = request.scope["state"].get("visit")
    if visit is not None:
        await form(request)
    response = RedirectResponse("/ui/sign-in", 303)
    await end(request, response, visit)
    return response


ROUTES = [
    page_route("/sign-in", show_sign_in),
    page_route("/sign-in", sign_in, "POST"),
    page_route("/sign-out", sign_out, "POST"),
]

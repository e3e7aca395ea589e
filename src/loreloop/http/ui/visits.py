"""Who looks at a page: a visit, held by a signed cookie that stands for a key; and forms that come from a page of it.

The cookie is kept nowhere. A visit ends with its time, with its key, or when its visitor signs out, which the audit log
holds.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from loreloop.http import tokens
from loreloop.http.bodies import read_body
from loreloop.http.browsers import site_of
from loreloop.http.loop.signing import opened, sealed
from loreloop.http.services import Services, known_key, now, secret_of, services
from loreloop.protocol.errors import BadRequest, Forbidden
from loreloop.store import audit, keys
from loreloop.store.account_rows import AuditEntry
from loreloop.store.rows import KeyRow

COOKIE, PURPOSE = "loreloop_visit", "page visit"
VISIT_SECONDS = 12 * 3600  # a working day
MOST_FORM_BYTES, MOST_FIELDS = 64 << 10, 100
TOKEN_FIELD, TOKEN_HEADER = "form_token", "x-form-token"
NOT_FROM_HERE = "This did not come from the page itself, so nothing was done; open the page, and send its form again."


class Visit(msgspec.Struct, frozen=True, array_like=True):
    """What the cookie's letters say; `expires` in seconds since the epoch."""

    key_id: str
    nonce: str
    expires: int


def begin(key: KeyRow) -> Visit:
    """A new visit of a key; it ends with the key where that expires before."""
    expires = min(now() + VISIT_SECONDS, key.expires or float("inf"))
    return Visit(key.id, secrets.token_urlsafe(12), int(expires))


def put_cookie(request: Request, response: Response, visit: Visit) -> None:
    """Has the browser bring the visit with each request that comes from these pages, and with no other."""
    letters = sealed(services(request).secret, PURPOSE, visit)
    # Of a proxy that speaks TLS only the browser knows, which says so by the origin.
    is_secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:")
    response.set_cookie(
        COOKIE, letters, max_age=VISIT_SECONDS, path="/ui", secure=is_secure, httponly=True, samesite="strict"
    )


async def end(request: Request, response: Response, visit: Visit | None) -> None:
    """Ends a visit for good: whoever has copied the cookie is out too, also after the server was started anew."""
    if visit is not None:
        served = services(request)
        for nonce in [nonce for nonce, expires in served.ended_visits.items() if expires < now()]:
            del served.ended_visits[nonce]
        served.ended_visits[visit.nonce] = visit.expires
        details = {"nonce": visit.nonce, "expires": visit.expires}
        await served.store.write(audit.note, AuditEntry(now(), audit.VISIT_END, visit.key_id, details))
    response.delete_cookie(COOKIE, path="/ui", httponly=True, samesite="strict")


def visit_of(request: Request) -> Visit | None:
    """The visit that came with a request; None where none did, or it is over."""
    served = services(request)
    visit = opened(served.secret, PURPOSE, request.cookies.get(COOKIE, ""), Visit)
    return visit if visit is not None and _is_open(served, visit) else None


def is_over(request: Request) -> bool:
    """Whether the visit that a request came with has ended meanwhile; False where it came with a key of its own."""
    visit: Visit | None = request.scope["state"].get("visit")
    return visit is not None and not _is_open(services(request), visit)


def _is_open(served: Services, visit: Visit) -> bool:
    return now() < visit.expires and visit.nonce not in served.ended_visits


def as_key(request: Request) -> Request:
    """The request as the routes of programs read it: a visit becomes a token that stands for its key. Where a key came
    by itself, that counts and not the cookie."""
    served, state = services(request), request.scope["state"]
    if secret := secret_of(request):
        state["page_key"] = known_key(request, secret)
        return request
    visit = visit_of(request)
    key = served.store.read(keys.active, visit.key_id, now()) if visit is not None else None
    if visit is None or key is None:
        return request
    state["visit"], state["page_key"] = visit, key
    token = tokens.mint(served.secret, key, now())
    headers = [*request.scope["headers"], (b"x-api-key", token.encode())]
    return Request({**request.scope, "headers": headers}, request.receive)


def form_token(request: Request) -> str:
    """What a form of this visit carries, so that no other page can make one up; empty without a visit."""
    visit: Visit | None = request.scope["state"].get("visit")
    return _token(services(request), visit) if visit is not None else ""


def _token(served: Services, visit: Visit) -> str:
    return hmac.new(served.secret, b"page form\0" + visit.nonce.encode(), hashlib.sha256).hexdigest()


async def form(request: Request) -> dict[str, list[str]]:
    """The fields of a form. Forbidden where it did not come from a page of this visit; a program that brings its key
    needs no token, since no other site can send that."""
    if request.scope["state"].get("visit") is not None:
        check_origin(request)
    fields = await fields_of(request)
    if request.scope["state"].get("visit") is not None:
        check_token(request, fields.get(TOKEN_FIELD, [""])[0])
    return fields


async def fields_of(request: Request) -> dict[str, list[str]]:
    """The fields of a body as forms send it, whoever sent it. BadRequest where it is none."""
    raw = await read_body(request, MOST_FORM_BYTES)
    try:
        return parse_qs(raw.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise BadRequest("The form cannot be read; open the page again, and send it from there.") from None


def check_token(request: Request, given: str) -> None:
    """Forbidden unless this is the token of the request's visit."""
    if not hmac.compare_digest(form_token(request).encode(), given.encode(errors="replace")):
        raise Forbidden(NOT_FROM_HERE)


def check_origin(request: Request) -> None:
    """Forbidden for what another site sends, and for what does not say where it comes from: browsers say it with every
    form."""
    if site_of(request) != "own":
        raise Forbidden(NOT_FROM_HERE)

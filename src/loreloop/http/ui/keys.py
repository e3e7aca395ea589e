"""The page of keys, for admin keys: who has which scopes and has used what; keys are made and revoked."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from loreloop.http.addresses import limit_of, number_of
from loreloop.http.services import ADMIN, IMPLIED, caller, found_key, now, services
from loreloop.http.ui.frame import page_route
from loreloop.http.ui.rendering import render
from loreloop.http.ui.visits import form
from loreloop.protocol.errors import BadRequest, Forbidden
from loreloop.protocol.paths import NAME
from loreloop.store import audit, keys, page_lists, usage
from loreloop.store.account_rows import AuditEntry
from loreloop.store.keys import NewKey
from loreloop.store.rows import DEPLOYMENT_SCOPE, FEEDBACK_SCOPE, KeyRow, KeyUsage

SCOPES = tuple(IMPLIED)
LONGEST_NAME = 80
USUAL_PAGE, MAX_PAGE = 200, 1000


async def keys_page(request: Request) -> Response:
    """Keys without their secrets, by pages."""
    caller(request, ADMIN)
    return await show_keys(request)


async def show_keys(request: Request, secret: str = "", name: str = "") -> Response:
    """The list, with the secret of a key that was made just now, which is shown this once."""
    limit, offset, store = (
        limit_of(request, USUAL_PAGE, MAX_PAGE),
        number_of(request, "offset"),
        services(request).store,
    )
    found = await store.read_apart(page_lists.keys_page, limit, offset)
    used = await store.read_apart(usage.by_key)
    rows = [msgspec.to_builtins(row) | {"usage": msgspec.to_builtins(used.get(row.id, KeyUsage()))} for row in found]
    page = {"total": await store.read_apart(page_lists.n_keys), "offset": offset, "limit": limit}
    return render(request, "keys.html", {"keys": rows, "scopes": SCOPES, "secret": secret, "made": name, **page})


async def make_key(request: Request) -> Response:
    """Makes a key. Its maker's own key is asked for once more, since a new key outlives the visit, and so would whoever
    had only found the browser open."""
    key = caller(request, ADMIN)
    fields = await form(request)
    served, name = services(request), fields.get("name", [""])[0].strip()
    scopes = scopes_in(fields)
    if not name or not name.isprintable() or len(name) > LONGEST_NAME:
        raise BadRequest(f"A key needs a name of 1 to {LONGEST_NAME} letters that can be read in a list.")
    own = found_key(request, fields.get("own_key", [""])[0].strip())
    if own is None or own.id != key.id:
        raise Forbidden("The key that you have signed in with must be typed once more, and this is another one.")
    made = await served.store.write(_create, name, scopes, key)
    return await show_keys(request, made.secret, name)


def scopes_in(fields: dict[str, list[str]]) -> tuple[str, ...]:
    """The scopes that a form asks for, `train` where it names none. BadRequest where one is none."""
    found = [text for each in fields.get("scope", []) + fields.get("scopes", []) for text in each.split()]
    for scope in found:
        of_one = next((kind for kind in (DEPLOYMENT_SCOPE, FEEDBACK_SCOPE) if scope.startswith(kind)), None)
        if scope not in SCOPES and (of_one is None or not NAME.fullmatch(scope.removeprefix(of_one))):
            raise BadRequest(
                f"{scope[:80]!r} is none of the scopes {', '.join(SCOPES)}, and no infer:NAME or feedback:NAME."
            )
    return tuple(dict.fromkeys(found)) or ("train",)


async def revoke_key(request: Request) -> Response:
    """Revokes a key: it is refused from then on, and its visits are over."""
    key = caller(request, ADMIN)
    await form(request)
    store, key_id = services(request).store, str(request.path_params["key_id"])
    row = store.read(keys.get, key_id)
    await store.write(audit.noting, _entry(key, "key_revoke", row), keys.revoke, row.id, now())
    return RedirectResponse("/ui/keys", 303)


def _create(connection: Connection, name: str, scopes: tuple[str, ...], by: KeyRow) -> NewKey:
    made = keys.create(connection, name, scopes, now())
    audit.note(connection, _entry(by, "key_create", made.row, scopes=" ".join(scopes)))
    return made


def _entry(by: KeyRow, event: str, row: KeyRow, **details: str) -> AuditEntry:
    return AuditEntry(now(), event, row.id, {"name": row.name, **details, "by": by.name})


ROUTES = [
    page_route("/keys", keys_page),
    page_route("/keys", make_key, "POST"),
    page_route("/keys/{key_id}/revoke", revoke_key, "POST"),
]

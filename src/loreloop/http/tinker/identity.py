"""Tinker routes by which a client learns whose its key is, changes it for a token, and gives it up."""

from __future__ import annotations

import zlib

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http import tokens
from loreloop.http.bodies import answer
from loreloop.http.services import INFER, caller, holder, now, services
from loreloop.store import audit, keys
from loreloop.store.account_rows import AuditEntry


async def exchange(request: Request) -> Response:
    """A token that stands for the key for an hour, by which the SDK also tells who it is."""
    key = holder(request, INFER)
    return answer({"jwt": tokens.mint(services(request).secret, key, now())})


async def own_key(request: Request) -> Response:
    """What is known of the key that came with the request."""
    key = caller(request, INFER)
    # The SDK wants a number, and a key's id is letters.
    number = zlib.crc32(key.id.encode())
    details = {"org_details": {"name": tokens.ORGANIZATION}, "user_details": {"email": key.name}}
    return answer({"key_id": number, "name": key.name, "note": f"scopes: {' '.join(key.scopes)}", "details": details})


async def give_up_key(request: Request) -> Response:
    """Revokes the key that came with the request, for good."""
    key = holder(request, INFER)
    entry = AuditEntry(now(), "key_revoke", key.id, {"name": key.name, "by": "its holder"})
    await services(request).store.write(audit.noting, entry, keys.revoke, key.id, now())
    return answer({})


ROUTES = [
    Route("/auth/token", exchange, methods=["POST"]),
    Route("/auth/apikey/me", own_key, methods=["GET"]),
    Route("/auth/apikey/me", give_up_key, methods=["DELETE"]),
]

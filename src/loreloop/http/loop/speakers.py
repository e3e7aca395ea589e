"""Who speaks in a request for feedback: a key with the scope, or a page with a token that such a key has made.

A token is for browsers, where everybody can read it: it gives feedback on one deployment from pages of certain origins,
and can do nothing else. It is signed and kept nowhere, and ends with its time or with the key that made it.
"""

from __future__ import annotations

import hashlib

import msgspec
from starlette.requests import Request

from loreloop.http.loop.giving import Giving, Speaker
from loreloop.http.loop.signing import opened, sealed
from loreloop.http.rates import Rate
from loreloop.http.services import ADMIN, FEEDBACK, Services, has, judge, now, services
from loreloop.protocol.errors import Forbidden, Unauthorized
from loreloop.protocol.feedback_rest import NewToken
from loreloop.store import deployments, keys
from loreloop.store.rows import KeyRow

PREFIX, PURPOSE = "fbt-", "feedback token"
ANY_ORIGIN = "*"
BURST_SECONDS = 10.0  # of a token's rate may come at once


class Token(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a token's letters say."""

    key_id: str
    deployment: str
    born: float | None  # the deployment, so that a later one of its name is another
    origins: tuple[str, ...]
    per_minute: int
    expires: int  # seconds since the epoch


def giving(request: Request) -> Giving:
    """The desk of the server that received the request."""
    served = services(request)
    return Giving(served.store, served.feedback, served.config.limits)


def key_speaker(request: Request) -> Speaker:
    """Whoever holds the key of the request; Forbidden where it has no scope for feedback."""
    return speaker_of(judge(request))


def speaker_of(key: KeyRow) -> Speaker:
    """A key that speaks for itself."""
    return Speaker(key, is_admin=has(key, ADMIN), is_general=has(key, FEEDBACK))


def any_speaker(request: Request) -> Speaker:
    """A key, or a page with a token; for the latter the answer lets the page read it."""
    _, _, bearer = request.headers.get("authorization", "").strip().partition(" ")
    if not bearer.strip().startswith(PREFIX):
        return key_speaker(request)
    return _page(request, bearer.strip())


def new_token(served: Services, key: KeyRow, wanted: NewToken) -> str:
    """A token as its page sends it."""
    token = Token(
        key_id=key.id,
        deployment=wanted.deployment,
        born=served.store.read(deployments.born, wanted.deployment),
        origins=wanted.origins,
        per_minute=wanted.per_minute,
        expires=int(now()) + wanted.expires_seconds,
    )
    return PREFIX + sealed(served.secret, PURPOSE, token)


def maker(served: Services, key_id: str, deployment: str, born: float | None) -> KeyRow | None:
    """The key that made a link or a token, unless it was revoked or the deployment is not there any more. What the key
    may still judge is looked at with each statement."""
    if born is None or served.store.read(deployments.born, deployment) != born:
        return None
    return served.store.read(keys.active, key_id, now())


def _page(request: Request, bearer: str) -> Speaker:
    token, key = _token_of(request, bearer)
    origin = request.headers.get("origin", "")
    if ANY_ORIGIN not in token.origins and origin not in token.origins:
        raise Forbidden(f"This feedback token is for pages of {', '.join(token.origins)}, not of {origin[:200]!r}.")
    # From here on the page may read what it is told, a refusal included.
    request.scope["state"]["headers"] = {
        "access-control-allow-origin": origin or ANY_ORIGIN,
        "access-control-expose-headers": "retry-after",
        "vary": "Origin",
    }
    per_second = token.per_minute / 60
    return Speaker(
        key=key,
        channel="browser",
        deployment=token.deployment,
        is_admin=has(key, ADMIN),
        is_general=has(key, FEEDBACK),
        rate=Rate(per_second, max(1.0, per_second * BURST_SECONDS)),
        name=hashlib.sha256(bearer.encode()).hexdigest(),
    )


def _token_of(request: Request, bearer: str) -> tuple[Token, KeyRow]:
    """What a token says, and the key that made it, which must be one that could make it today."""
    served = services(request)
    token = opened(served.secret, PURPOSE, bearer.removeprefix(PREFIX), Token)
    key = maker(served, token.key_id, token.deployment, token.born) if token is not None else None
    may = token is not None and key is not None and giving(request).may_speak_of(speaker_of(key), token.deployment, "")
    if token is None or key is None or not may or token.expires < now():
        raise Unauthorized(
            "This feedback token is not one of this server, or has expired, or its key was revoked or may not judge "
            "this deployment any more; POST /loop/v1/feedback-tokens makes one."
        )
    return token, key

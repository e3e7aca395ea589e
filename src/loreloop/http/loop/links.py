"""Feedback by links for mails and chats: one for a target, a metric and a person, signed, with an end.

Looking at the page records nothing, so that a scanner which opens all links of a mail has not voted; its form does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from loreloop.http.bodies import answer, read_body, read_json
from loreloop.http.loop.giving import Speaker
from loreloop.http.loop.page import HEADERS, form_page, message_page, shown
from loreloop.http.loop.signing import opened, sealed
from loreloop.http.loop.sizes import MOST_OTHER_BYTES, MOST_PUBLIC_BYTES
from loreloop.http.loop.speakers import giving, key_speaker, maker
from loreloop.http.rates import Rate
from loreloop.http.services import ADMIN, FEEDBACK, has, now, services
from loreloop.protocol.errors import BadRequest, Forbidden
from loreloop.protocol.feedback import Metric
from loreloop.protocol.feedback_rest import GiveFeedback, NewLink
from loreloop.protocol.feedback_rules import check_level, metric_named
from loreloop.store import deployments, metrics

PURPOSE = "feedback link"
OF_LINK = Rate(per_second=0.2, burst=20)
WORDS = {"true": True, "false": False}


class Link(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a link's letters say."""

    key_id: str
    deployment: str
    born: float | None  # the deployment, so that a later one of its name is another
    target_id: str
    metric: str
    who: str
    expires: int  # seconds since the epoch


async def make_link(request: Request) -> Response:
    """An address at which one person answers one question about one target, without a key."""
    speaker = giving(request).admit(key_speaker(request))
    wanted = await read_json(request, NewLink, MOST_OTHER_BYTES)
    target = giving(request).target(speaker, wanted.target_id)
    declared = services(request).store.read(metrics.of_deployment, target.deployment)
    metric = metric_named(wanted.metric, declared, target.deployment)
    check_level(metric, target.level, is_declared=metric.name in declared)
    if metric.kind == "preference":
        raise BadRequest("A link asks about one answer, and a preference is about two; link to a thumb or a score.")
    link = Link(
        key_id=speaker.key.id,
        deployment=target.deployment,
        born=services(request).store.read(deployments.born, target.deployment),
        target_id=target.id,
        metric=metric.name,
        who=wanted.who,
        expires=int(now()) + wanted.expires_seconds,
    )
    letters = sealed(services(request).secret, PURPOSE, link)
    return answer({"url": f"{request.base_url}f/{letters}", "expires": link.expires})


async def show_page(request: Request) -> Response:
    """The form; nothing is recorded."""
    _tell_by_page(request)
    link, speaker = _link_of(request)
    giving(request).target(speaker, link.target_id)  # may be gone by now, which is better told before the form
    return HTMLResponse(form_page(_metric_of(request, link), _moment(link.expires)), headers=HEADERS)


async def answer_page(request: Request) -> Response:
    """Records what the form says, in the place of what this link said before."""
    _tell_by_page(request)
    link, speaker = _link_of(request)
    metric = _metric_of(request, link)
    giving(request).admit(speaker)
    body = await _filled(request, link, metric)
    said = await giving(request).give(speaker, body)
    return HTMLResponse(
        form_page(metric, _moment(link.expires), kept=shown(metric, said["value"])[:200]), headers=HEADERS
    )


def _link_of(request: Request) -> tuple[Link, Speaker]:
    served, letters = services(request), str(request.path_params["token"])
    link = opened(served.secret, PURPOSE, letters, Link)
    key = maker(served, link.key_id, link.deployment, link.born) if link is not None else None
    if link is None or key is None:
        raise Forbidden(
            "This feedback link is not one of this server, or its key was revoked, or its deployment deleted; ask "
            "for a new link."
        )
    if link.expires < now():
        raise Forbidden(f"This feedback link has expired at {_moment(link.expires)}; ask for a new one.")
    speaker = Speaker(
        key=key,
        channel="link",
        deployment=link.deployment,
        is_admin=has(key, ADMIN),
        is_general=has(key, FEEDBACK),
        rate=OF_LINK,
        name=letters,
    )
    return link, speaker


def _metric_of(request: Request, link: Link) -> Metric:
    declared = services(request).store.read(metrics.of_deployment, link.deployment)
    return metric_named(link.metric, declared, link.deployment)


async def _filled(request: Request, link: Link, metric: Metric) -> GiveFeedback:
    """The statement that the form makes."""
    raw = await read_body(request, MOST_PUBLIC_BYTES)
    try:
        fields = parse_qs(raw.decode(), max_num_fields=10)
    except ValueError:  # no text, or too many fields
        fields = {}
    text, why = fields.get("value", [""])[0].strip(), fields.get("why", [""])[0].strip()
    value: bool | float | str = text
    try:
        match metric.kind:
            case "boolean":
                value = WORDS[text]
            case "float":
                value = float(text)
        about = {"target_id": link.target_id, "metric": link.metric, "who": link.who, "source": "human"}
        return msgspec.convert({**about, "value": value, "why": why}, GiveFeedback)
    except (KeyError, ValueError):
        raise BadRequest(
            f"The form brought no value for {metric.name!r} that can be kept; go back and fill it in."
        ) from None


def _tell_by_page(request: Request) -> None:
    """Has an error answered with a page, since people read it."""
    request.scope["state"]["page_of"] = message_page
    request.scope["state"]["headers"] = HEADERS


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %B %Y, %H:%M UTC")


ROUTES = [Route("/feedback-links", make_link, methods=["POST"])]
PAGES = [
    Route("/f/{token}", show_page, methods=["GET"]),
    Route("/f/{token}", answer_page, methods=["POST"]),
]

"""The application: routers composed, and the one place where errors become HTTP answers."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loreloop.host.dispatcher import STOPPING
from loreloop.http import hub
from loreloop.http import openapi as described
from loreloop.http.anthropic import messages
from loreloop.http.bodies import answer
from loreloop.http.browsers import admission_of, preflight, readable_by
from loreloop.http.exchange import Exchange
from loreloop.http.generation.remembered import end_of_turn
from loreloop.http.loop import feedback, links, persons, standing, turns
from loreloop.http.loop import metrics as feedback_metrics
from loreloop.http.openai import chat_completions, completions, files, fine_tuning, graders, models, responses
from loreloop.http.operations import activity, deployments, health, jobs, memories, metrics, person_arms, removal
from loreloop.http.services import Services
from loreloop.http.tinker import (
    accounts,
    downloads,
    futures,
    identity,
    runs,
    sampling,
    session_lists,
    sessions,
    sharing,
    traces,
    training,
)
from loreloop.http.ui import routes as ui
from loreloop.protocol import errors

STATUS_CODES: dict[type[errors.LoreloopError], int] = {
    errors.BadRequest: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.TooLarge: 413,
    errors.Misdirected: 421,
    errors.Unavailable: 429,
    errors.OutOfService: 503,
    errors.UserError: 400,
    errors.LoreloopError: 500,
}
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


DETAILED = (errors.BadRequest, errors.FilesGone)
LOG = logging.getLogger(__name__)
FAULT = "The server failed on this request; its log says why,"
UNWATCHED = ("show_happenings", "healthz", "metrics")  # routes that are asked again and again
PLACES = "OpenAI's API is under /v1, Anthropic's under /anthropic/api/v1, Tinker's under /api/v1."

TINKER: list[Route] = [
    *sessions.ROUTES,
    *training.ROUTES,
    *sampling.ROUTES,
    *futures.ROUTES,
    *runs.ROUTES,
    *downloads.ROUTES,
    *identity.ROUTES,
    *sharing.ROUTES,
    *session_lists.ROUTES,
    *traces.ROUTES,
    *accounts.ROUTES,
    *health.ROUTES,
]
# OpenAI's routes are mounted twice: most clients expect /v1, those of Tinker's own service /oai/api/v1.
OPENAI: list[Route] = [
    *models.ROUTES,
    *models.DELETING,
    *completions.ROUTES,
    *chat_completions.ROUTES,
    *responses.ROUTES,
    *files.ROUTES,
    *fine_tuning.ROUTES,
    *graders.ROUTES,
]
LOOP: list[Route] = [
    *deployments.ROUTES,
    *turns.ROUTES,
    *standing.ROUTES,
    *persons.ROUTES,
    *person_arms.ROUTES,
    *memories.ROUTES,
    *removal.ROUTES,
    *jobs.ROUTES,
    *activity.ROUTES,
    *feedback.ROUTES,
    *links.ROUTES,
    *feedback_metrics.ROUTES,
]


def create_app(services: Services) -> Starlette:
    """The application with all routes of all dialects mounted, its error handlers, and `services` on its state."""
    app = Starlette(
        routes=[
            Mount("/api/v1", routes=TINKER),
            Mount("/oai/api/v1", routes=OPENAI),
            Mount("/v1", routes=OPENAI),
            Mount("/anthropic/api/v1", routes=[*messages.ROUTES, *models.ROUTES]),
            Mount("/hf", routes=hub.ROUTES),
            Mount("/loop/v1", routes=LOOP),
            Mount("/ui", routes=ui.ROUTES),
            *links.PAGES,
            *feedback.TENSORZERO,
            *health.ROUTES,
            *metrics.ROUTES,
            *described.ROUTES,
        ],
        exception_handlers={errors.LoreloopError: on_error, HTTPException: on_http_error},  # type: ignore[dict-item]
    )
    app.state.services = services
    app.add_middleware(Doorkeeper, services=services)
    # The boundary is the outermost layer, so that it also sees what the error handlers themselves raise.
    app.add_middleware(Boundary)
    return app


def error_answer(status_code: int, message: str, details: dict[str, Any] | None = None) -> Response:
    """A body that the SDK, its command line (`detail`), OpenAI's and Anthropic's clients (`error`) can all show."""
    # OpenAI's clients decide by the type, not by the status code, whether a request is worth another try.
    kind = KINDS.get(status_code, "server_error" if status_code >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind} | ({"details": details} if details else {})
    return answer({"type": "error", "detail": message, "error": error}, status_code)


def on_error(request: Request, error: errors.LoreloopError) -> Response:
    """An error of ours as an answer: its class gives the status code. Unavailable also sets `retry-after`, in seconds,
    and the place in the queue where it is known."""
    # The nearest class with a code of its own decides, so that a new error class without an entry falls back to its
    # parent's.
    status_code = next(STATUS_CODES[kind] for kind in type(error).__mro__ if kind in STATUS_CODES)
    response = error_answer(
        status_code, error.message, dict(error.details or {}) if isinstance(error, DETAILED) else None
    )
    # A route may have its errors told to people by a page, or to pages of other origins.
    state = request.scope.get("state", {})
    if page_of := state.get("page_of"):
        response = HTMLResponse(page_of(error.message), status_code)
    response.headers.update(state.get("headers", {}))
    if isinstance(error, errors.Unavailable):
        response.headers["retry-after"] = str(max(1, round(error.retry_after_seconds)))
        if error.queue_position is not None:
            response.headers["x-queue-position"] = str(error.queue_position)
    return response


def on_http_error(request: Request, error: HTTPException) -> Response:
    """An error that the framework raises, in the same body as ours: an unknown path, a wrong method, a broken
    request."""
    if error.status_code == 404:
        return error_answer(404, f"There is no route {request.method} {request.url.path} on this server. {PLACES}")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return error_answer(405, f"{request.url.path} does not take {request.method}; send {allowed}.")
    return error_answer(error.status_code, str(error.detail))


class Doorkeeper:
    """Before any route: who asks by a name of somebody else, or from a page of somebody else, gets no further. Lets
    pages that the settings name read their answers."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self.app, self.admission = app, admission_of(services.config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope)
        guest = self.admission.guest_of(request)

        async def send_on(message: Message) -> None:
            # Routes that are made for pages say themselves who may read.
            if message["type"] == "http.response.start" and guest:
                headers = list(message.get("headers", []))
                if all(name != b"access-control-allow-origin" for name, _ in headers):
                    message = {**message, "headers": [*headers, *readable_by(guest)]}
            await send(message)

        try:
            self.admission.check(request)
        except errors.UserError as error:
            return await on_error(request, error)(scope, receive, send_on)
        # Browsers ask first whether a page of another origin may.
        answered = preflight(request) if guest else None
        await (answered or self.app)(scope, receive, send_on)


class Boundary:
    """What escapes a route is a fault of ours: it is logged, and the client hears so, in whatever state the answer is.
    Counts and logs what passes; while the server stops, nothing new does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        served, exchange = scope["app"].state.services, Exchange(scope, send)
        try:
            if served.dispatcher.stopping:
                raise errors.OutOfService(STOPPING)
            await self.app(scope, receive, exchange.send)
        except ClientDisconnect:
            pass  # nobody is left to answer
        # A cancellation that is not the server's own stop belongs to whoever cancelled, and must go on upwards.
        except (asyncio.CancelledError, errors.OutOfService):
            if not served.dispatcher.stopping:
                raise
            await exchange.break_off(stopping_answer(), STOPPING, receive)
        except Exception as error:
            # The cause is an error that was raised within a stream which had begun.
            our_error = errors.disk_trouble(error) or error.__cause__
            if isinstance(our_error, errors.LoreloopError):
                message, response = our_error.message, on_error(Request(scope), our_error)
            else:
                LOG.exception("%s failed", exchange)
                message = f"{FAULT} under {exchange.request_id}."
                response = error_answer(500, message)
            await exchange.break_off(response, message, receive)
        finally:
            await end_of_turn(scope, left=exchange.started and not exchange.ended)
            # This stands in `finally`, so that a request whose client has left is counted and logged like any other.
            served.requests.add(exchange.route, exchange.status_code, exchange.seconds)
            # Whoever watches would see himself, and polls that wait are no news.
            if exchange.route not in UNWATCHED and exchange.status_code != futures.PENDING_STATUS:
                served.dispatcher.observers.happenings.note("request", exchange.route, str(exchange))
            LOG.info("%s", exchange)


def stopping_answer() -> Response:
    """The 503 for whoever comes while the server stops; it asks for another try in a second, on a new connection."""
    response = error_answer(503, STOPPING)
    response.headers["retry-after"] = "1"
    response.headers["connection"] = "close"
    return response

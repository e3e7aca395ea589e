"""One request and its answer as the border of the application sees them: what was sent of it, and how it is broken off.

Knows no route and no dialect.
"""

from __future__ import annotations

import secrets
import time
from inspect import isfunction

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from loreloop.http.sse import EVENT_STREAM, broken_off

LEFT = 499  # as is said of clients that leave before an answer
SHOWN = 200  # characters of a path, in the log
SECRET_PARAMETER, HIDDEN = "token", "..."  # of a path, and what the log has in its place


class Exchange:
    """`request_id` goes out as a header and into the log, so that the two can be brought together."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send = scope, send
        self.request_id = f"req-{secrets.token_hex(8)}"
        self.started_at = time.perf_counter()
        self.status_code = LEFT
        self.started = self.ended = self._streams = False
        # The routes write the key's name here; the log has to find the place even where no route was reached.
        scope.setdefault("state", {})

    @property
    def seconds(self) -> float:
        """How long this request has taken until now, in seconds."""
        return time.perf_counter() - self.started_at

    @property
    def route(self) -> str:
        """The route's name; "none" where none fitted."""
        endpoint = self.scope.get("endpoint")  # a router where no route of it fitted
        return endpoint.__name__ if isfunction(endpoint) else "none"

    def __str__(self) -> str:
        """What the log says of it: no body, no query, no secret."""
        # Paths and names of keys come from outside: escaped, they cannot forge a second line in the log.
        path: str = self.scope["path"]
        # Whoever knows the letters of a link may use it.
        if token := self.scope.get("path_params", {}).get(SECRET_PARAMETER):
            path = path.replace(token, HIDDEN)
        path = path[:SHOWN].encode("unicode_escape").decode()
        key = self.scope["state"].get("key_name", "")
        return (
            f"{self.scope['method']} {path} {self.status_code} {1000 * self.seconds:.0f} ms "
            f"route={self.route} key={key.encode('unicode_escape').decode() or '-'} id={self.request_id}"
        )

    async def send(self, message: Message) -> None:
        """Passes a part of the answer on, notes how far the answer has come, and adds the request's id to its head."""
        if message["type"] == "http.response.start":
            self.started, self.status_code = True, message["status"]
            headers = list(message.get("headers", []))
            self._streams = any(name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers)
            message = {**message, "headers": [*headers, (b"x-request-id", self.request_id.encode())]}
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        await self._send(message)

    async def break_off(self, response: Response, message: str, receive: Receive) -> None:
        """Answers with `response` if nothing was sent yet; a stream of events ends with one that says `message`. Other
        bodies stay unfinished, and the web server then hangs up, so that nobody takes a part for the whole."""
        if not self.started:
            await response(self.scope, receive, self.send)
        elif self._streams and not self.ended:
            await self.send({"type": "http.response.body", "body": broken_off(message), "more_body": False})

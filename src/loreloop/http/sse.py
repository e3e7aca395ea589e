"""Server-sent events: how they are written, and kept alive while nothing happens. Knows no API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from loreloop.http.tasks import end

KEEP_ALIVE_SECONDS = 10.0  # proxies commonly give a silent connection up after 30 or 60
KEEP_ALIVE = b": keep-alive\n\n"
EVENT_STREAM = b"text/event-stream"


def data_event(value: object) -> bytes:
    """An event without a name whose data is `value` as JSON, as OpenAI's streams have it."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def named_event(name: str, value: object) -> bytes:
    """An event with a name and data, as Anthropic's streams and OpenAI's responses have it."""
    return b"event: " + name.encode() + b"\n" + data_event(value)


def broken_off(message: str) -> bytes:
    """The last event of a stream that cannot go on. OpenAI's clients look for `error` in any event, Anthropic's for the
    event's name, so that one event tells both."""
    error = {"message": message, "type": "server_error", "code": None, "param": None}
    return named_event("error", {"type": "error", "error": error})


class EventStream(StreamingResponse):
    """`at_end` is called when the stream is over, however early its client has left."""

    def __init__(self, events: AsyncIterator[bytes], headers: dict[str, str], at_end: Callable[[], None]) -> None:
        # The second header keeps nginx from collecting the stream until it ends.
        quiet = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_kept_alive(events), media_type=EVENT_STREAM.decode(), headers=quiet | headers)
        self.at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.at_end()


async def _kept_alive(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    iterator = aiter(events)
    coming: asyncio.Task[bytes] | None = None
    try:
        while True:
            # The pending read survives a keep-alive: cancelling it would end the iterator, and lose an event that is
            # just arriving.
            coming = coming or asyncio.ensure_future(anext(iterator))
            await asyncio.wait({coming}, timeout=KEEP_ALIVE_SECONDS)
            if not coming.done():
                yield KEEP_ALIVE
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield event
    finally:
        # The client has left in the middle: the read must end before the iterator can be closed.
        if coming is not None:
            await end(coming)
        await events.aclose()  # type: ignore[attr-defined]

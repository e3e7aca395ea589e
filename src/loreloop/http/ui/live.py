"""A part of a page that is sent anew whenever what it shows has changed, by server-sent events.

A look costs two small reads every two seconds for each open page, and nothing while nobody looks; what takes long to
show is shown less often. A stream ends with its key and with its visit, and after an hour, so that the browser asks
again as whoever it is then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from loreloop.http.services import now, services
from loreloop.http.sse import EventStream
from loreloop.http.ui.visits import is_over
from loreloop.protocol.errors import NotFound
from loreloop.store import keys
from loreloop.store.rows import KeyRow

LOOK_SECONDS = 2.0
STREAM_SECONDS = 3600.0
PAUSE_TIMES = 100  # as long as it took to make a part: an open page takes a hundredth of a processor at most
LONGEST_PAUSE_SECONDS = 30.0


class Look(NamedTuple):
    """What tells one state from another, and how it is shown."""

    state: Any
    show: Callable[[], Awaitable[str]]


def live_stream(request: Request, key: KeyRow, look: Callable[[], Awaitable[Look]]) -> Response:
    """The events of a page, the first at once."""
    return EventStream(_changes(request, key, look), {}, lambda: None)


async def _changes(request: Request, key: KeyRow, look: Callable[[], Awaitable[Look]]) -> AsyncIterator[bytes]:
    served, until, shown = services(request), now() + STREAM_SECONDS, object()
    while now() < until and not served.dispatcher.stopping:
        if served.store.read(keys.active, key.id, now()) is None or is_over(request):
            return
        began, spent = time.perf_counter(), 0.0
        try:
            seen = await look()
            if seen.state != shown:
                shown = seen.state
                event = page_event(await seen.show())
                spent = time.perf_counter() - began
                yield event
        except NotFound:  # it was deleted meanwhile
            return
        await asyncio.sleep(max(LOOK_SECONDS, min(PAUSE_TIMES * spent, LONGEST_PAUSE_SECONDS)))


def page_event(html: str) -> bytes:
    """An event whose data is HTML. A line of the stream begins with its field, so each line of the text does."""
    lines = "".join(f"data: {line}\n" for line in html.splitlines() if line.strip())
    return f"event: page\n{lines}\n".encode()

"""A request for text is answered whole or as a stream: the same steps in every dialect.

Knows no dialect: what an answer looks like is passed in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from loreloop.http.bodies import answer
from loreloop.http.generation.requests import Model, forget, results, start
from loreloop.http.services import services
from loreloop.http.sse import EventStream
from loreloop.protocol.sampling import SampleOp, SampleResult

Whole = Callable[[Sequence[SampleResult]], Awaitable[dict[str, Any]]]


async def answered(
    request: Request, model: Model, ops: Sequence[SampleOp], whole: Whole, stream: AsyncIterator[bytes] | None
) -> Response:
    """`stream` None: the answer is what `whole` makes of the results. A client that leaves cancels what is left."""
    if stream is not None:
        start(services(request), model, ops)
        return EventStream(stream, model.headers, partial(forget, services(request), ops))
    response = answer(await whole(await results(request, model, ops)))
    response.headers.update(model.headers)
    return response

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
from loreloop.http.generation.recording import TurnRecording
from loreloop.http.generation.requests import Model, forget, results, start
from loreloop.http.services import Services, services
from loreloop.http.sse import EventStream
from loreloop.protocol.sampling import SampleOp, SampleResult

Whole = Callable[[Sequence[SampleResult]], Awaitable[dict[str, Any]]]


async def answered(
    request: Request,
    model: Model,
    ops: Sequence[SampleOp],
    whole: Whole,
    stream: AsyncIterator[bytes] | None,
    recording: TurnRecording | None = None,
) -> Response:
    """`stream` None: the answer is what `whole` makes of the results. A client that leaves cancels what is left.
    `recording` hears when a stream begins and when it is over."""
    if stream is not None:
        start(services(request), model, ops)
        if recording is not None:
            recording.go_live()
        return EventStream(stream, model.headers, partial(_over, services(request), ops, recording))
    response = answer(await whole(await results(request, model, ops)))
    response.headers.update(model.headers)
    return response


def _over(served: Services, ops: Sequence[SampleOp], recording: TurnRecording | None) -> None:
    forget(served, ops)
    if recording is not None:
        recording.leave()

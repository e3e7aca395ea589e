"""Tinker routes that wait for results, one or those of a sampler: long polls, answered when one is there."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.host.completions import Target, target_of
from loreloop.host.waiting import Place, place_of_operation
from loreloop.http.bodies import answer, read_json
from loreloop.http.services import INFER, caller, services
from loreloop.protocol.codec import encode_pass_result, encode_sample_result
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.rest import RequestId, RetrieveFuture, RetrieveFutures
from loreloop.protocol.sampling import SampleResult
from loreloop.protocol.training import Failure, PassResult, StepResult
from loreloop.store import samplers, sessions
from loreloop.store.rows import Outcome

PROTOBUF = "application/x-protobuf"
PENDING_STATUS = 408  # the SDK asks again at once


async def retrieve_future(request: Request) -> Response:
    """The result of a request, or "try again" when it has not come within the time of one poll."""
    key, served = caller(request, INFER), services(request)
    body = await read_json(request, RetrieveFuture)
    session_id = body.request_id.split(":")[0]
    served.store.read(sessions.get, key.id, session_id)  # other keys' requests do not exist for this one
    hold_seconds = served.config.session.poll_hold_seconds
    # Samples live in memory and training operations in the journal; the form of the id says where to look.
    if ":sample:" in body.request_id:
        sampled = await served.dispatcher.sample_result(body.request_id, hold_seconds)
        if sampled is None:
            return pending(served.places.of_sample(served.dispatcher, body.request_id))
        return sample_answer(sampled)
    outcome = await served.dispatcher.outcome(body.request_id, hold_seconds)
    if outcome is None:
        return pending(place_of_operation(served.dispatcher, body.request_id))
    return train_answer(outcome)


async def retrieve_futures(request: Request) -> Response:
    """Which samples of one client have ended; what it has fetched already is let go."""
    key, served = caller(request, INFER), services(request)
    body = await read_json(request, RetrieveFutures)
    served.store.read(samplers.get, key.id, body.target.sampling_session_id)
    target = Target(body.target.sampling_session_id, body.target.cloned_sampler_id)
    for request_id in body.retrieved_request_ids:
        # Of its own ones alone, and never one that has not ended: to forget that would cancel it.
        if target_of(request_id) == target:
            served.dispatcher.forget_ended(request_id)
    hold_seconds = served.config.session.poll_hold_seconds
    seconds = hold_seconds if body.timeout is None else min(body.timeout, hold_seconds)
    heard = await served.dispatcher.completions.since(target, body.prev_cursor, seconds)
    ended = [
        {"state": "failed" if one.failed else "finished", "request_id": one.request_id} for one in heard.completions
    ]
    return answer({"completions": ended, "cursor": heard.cursor})


async def cancel_future(request: Request) -> Response:
    """Ends a sample that nobody waits for. What is unknown or has ended is let be; training is never cancelled."""
    key, served = caller(request, INFER), services(request)
    request_id = (await read_json(request, RequestId)).request_id
    target = target_of(request_id)
    if target is None:
        raise BadRequest(f"{request_id[:200]!r} is no sample; only samples are cancelled.")
    served.store.read(samplers.get, key.id, target.sampler_id)
    served.dispatcher.cancel(request_id)
    return answer({})


def pending(place: Place | None = None) -> Response:
    """Says that the result is not there yet; the SDK polls again at once. Where others are before it, the SDK tells its
    user so from time to time."""
    if place is None:
        return answer({"type": "try_again", "queue_state": "active"}, PENDING_STATUS)
    waits = {"queue_state": "paused_capacity", "queue_state_reason": place.in_words()}
    return answer({"type": "try_again", **waits}, PENDING_STATUS)


def sample_answer(result: SampleResult | Failure) -> Response:
    """A sample's result as protobuf, or its failure as JSON."""
    if isinstance(result, Failure):
        return failure_answer(result)
    return Response(encode_sample_result(result), media_type=PROTOBUF)


def train_answer(outcome: Outcome) -> Response:
    """A training operation's result: a pass as protobuf, a step's metrics or what was promised on acceptance as
    JSON."""
    result = outcome.result
    if isinstance(result, Failure):
        return failure_answer(result)
    if isinstance(result, PassResult):
        return Response(encode_pass_result(result), media_type=PROTOBUF)
    if isinstance(result, StepResult):
        return answer({"metrics": result.metrics})
    return answer(outcome.reply)


def failure_answer(failure: Failure) -> Response:
    """A failed operation, which the SDK raises as an error; the request itself has succeeded, so the status is 200."""
    return answer({"error": failure.message, "category": failure.category})


ROUTES = [
    Route("/retrieve_future", retrieve_future, methods=["POST"]),
    Route("/retrieve_futures", retrieve_futures, methods=["POST"]),
    Route("/cancel_future", cancel_future, methods=["POST"]),
]

"""OpenAI's routes: completions, chat completions; streamed or whole.

Model names are those of `serve.names`; text is made of tokens by `openai_text`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from loreloop.http.bodies import answer, read_json
from loreloop.http.openai_text import Answer, Shape, text_of
from loreloop.http.services import Services, asker, fresh_seed, may_use, now, services
from loreloop.protocol.checks import check_params, check_tokens
from loreloop.protocol.errors import BadRequest, ServerError
from loreloop.protocol.link import EngineInfo
from loreloop.protocol.openai_rest import ChatCompletion, Common, Completion
from loreloop.protocol.rest import WireSamplingParams
from loreloop.protocol.sampling import SampleOp, SampleResult
from loreloop.protocol.training import Failure
from loreloop.serve.names import Target
from loreloop.serve.texts import ModelText
from loreloop.store.rows import KeyRow

WAIT_SECONDS = 2.0  # between two looks at whether the client is still there


@dataclass(frozen=True)
class Asked:
    """A checked request: what runs, on what, and how its answer is shaped."""

    op: SampleOp
    target: Target
    text: ModelText
    shape: Shape
    stream: bool
    include_usage: bool


async def completions(request: Request) -> Response:
    key = asker(request)
    body = await read_json(request, Completion)
    target, text = look_up(services(request), key, body)
    tokens = text.tokenizer.encode(body.prompt) if isinstance(body.prompt, str) else list(body.prompt)
    shape = Shape("text_completion", body.model, body.logprobs or 0, body.logprobs is not None, stops(body))
    return await run(request, await ask(request, key.id, body, (target, text, shape), tokens, body.max_tokens or 16))


async def chat_completions(request: Request) -> Response:
    key = asker(request)
    body = await read_json(request, ChatCompletion)
    target, text = look_up(services(request), key, body)
    messages = [{"role": message.role, "content": message.text} for message in body.messages]
    tokens = text.tokenizer.encode(text.template.render(messages))
    shape = Shape("chat.completion", body.model, body.top_logprobs or 0, bool(body.logprobs), stops(body))
    max_tokens = body.max_completion_tokens or body.max_tokens
    return await run(request, await ask(request, key.id, body, (target, text, shape), tokens, max_tokens))


def look_up(served: Services, key: KeyRow, body: Common) -> tuple[Target, ModelText]:
    may_use(key, body.model)
    target = served.names.target(served.store, key, body.model, body.user)
    return target, served.texts.of(served.names.folder(target.base_model))


def stops(body: Common) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else body.stop or ()


async def ask(
    request: Request,
    owner: str,
    body: Common,
    found: tuple[Target, ModelText, Shape],
    tokens: list[int],
    max_tokens: int | None,
) -> Asked:
    """Checks against the model."""
    target, text, shape = found
    if body.stream and shape.logprobs:
        raise BadRequest("logprobs are not served with stream; ask for one of them.")
    info = await services(request).desk.info(target.base_model)
    usage = bool(body.stream_options and body.stream_options.include_usage)
    op = sample_op(owner, body, found, tokens, (max_tokens, info))
    return Asked(op, target, text, shape, bool(body.stream), usage)


def sample_op(
    owner: str,
    body: Common,
    found: tuple[Target, ModelText, Shape],
    tokens: list[int],
    bounds: tuple[int | None, EngineInfo],
) -> SampleOp:
    """The operation; the end-of-sequence ids stop a text always, stop strings besides."""
    target, _, shape = found
    max_tokens, info = bounds
    wire = WireSamplingParams(
        max_tokens=max_tokens,
        seed=body.seed,
        stop=shape.stop_strings or None,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=-1 if body.top_k is None else body.top_k,
        top_p=1.0 if body.top_p is None else body.top_p,
    )
    chunk = check_tokens(tokens, info)
    params = check_params(wire, len(tokens), info, fresh_seed())
    return SampleOp(
        request_id=f"{shape.id_prefix}-{uuid.uuid4().hex}",
        owner=owner,
        revision=target.revision,
        prompt=(chunk,),
        num_samples=body.n or 1,
        params=msgspec.structs.replace(params, stop_tokens=info.eos_token_ids),
        topk_sample_logprobs=shape.top_logprobs,
        stream=bool(body.stream),
    )


async def run(request: Request, asked: Asked) -> Response:
    desk = services(request).desk
    desk.sample(asked.op, asked.target.base_model)
    made = Answer(asked.op, asked.shape, int(now()))
    if asked.stream:
        pieces = events(services(request), asked, made)
        return StreamingResponse(pieces, media_type="text/event-stream", headers=revision_header(asked))
    result: SampleResult | Failure | None = None
    while result is None:
        result = await desk.sample_result(asked.op.request_id, WAIT_SECONDS)
        if result is None and await request.is_disconnected():
            desk.cancel(asked.op.request_id)
    desk.forget(asked.op.request_id)
    response = answer(made.whole(unfailing(result), asked.text.tokenizer))
    response.headers.update(revision_header(asked))
    return response


def revision_header(asked: Asked) -> dict[str, str]:
    """Which weights answered: for a deployment the caller cannot tell from the name."""
    return {"x-loreloop-revision": asked.target.label}


def unfailing(result: SampleResult | Failure) -> SampleResult:
    if isinstance(result, Failure):
        raise (BadRequest if result.category == "user" else ServerError)(result.message)
    return result


async def events(served: Services, asked: Asked, made: Answer) -> AsyncIterator[bytes]:
    """Server-sent events; a client that leaves cancels its request."""
    texts = [text_of(asked.text.tokenizer, asked.op, asked.shape) for _ in range(asked.op.num_samples)]
    try:
        async for item in served.desk.stream(asked.op.request_id):
            if isinstance(item, Failure):
                yield sse({"error": {"message": item.message, "type": item.category}})
            elif isinstance(item, SampleResult):
                for index, sequence in enumerate(item.sequences):
                    yield sse(made.piece(index, texts[index].flush(), sequence.stop_reason))
                if asked.include_usage:
                    yield sse(made.usage_piece(item))
            elif piece := texts[item.sample_index].push(item.token):
                yield sse(made.piece(item.sample_index, piece, None))
        yield b"data: [DONE]\n\n"
    finally:
        served.desk.forget(asked.op.request_id)


def sse(value: dict[str, object]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


ROUTES = [
    Route("/completions", completions, methods=["POST"]),
    Route("/chat/completions", chat_completions, methods=["POST"]),
]

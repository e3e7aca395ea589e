"""What every dialect of text generation shares: the model asked for, the operation, waiting for it, streaming it.

Knows no dialect's bodies.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from loreloop.deployments.model_names import Target
from loreloop.deployments.model_texts import ModelText
from loreloop.http.audited import note_daily_read
from loreloop.http.generation.marks import EPISODE_HEADER, Marks, asking_of
from loreloop.http.services import Services, asker, fresh_seed, may_use, services
from loreloop.http.tasks import end
from loreloop.protocol.checks import check_params, too_long
from loreloop.protocol.errors import BadRequest, LoreloopError, ServerError, Unavailable
from loreloop.protocol.link import EngineInfo, Token
from loreloop.protocol.rest import WireSamplingParams
from loreloop.protocol.sampling import PromptScores, SampledSequence, SampleOp, SampleResult
from loreloop.protocol.token_ids import pack_ids, pack_logprobs
from loreloop.protocol.training import Chunk, Failure, length_of
from loreloop.text.grammars.sandbox import GrammarSandbox, Rules
from loreloop.text.tokenizer import Encoded

SHORT_TEXT = 4096  # characters that are read within a few milliseconds
COUNTED_WINDOWS = 2  # up to so many, a text's length is told exactly
NO_MARKS = Marks()
T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """What a request's model name means, for the key that asks; `defaults` are the sampling parameters of its chats."""

    name: str
    owner: str
    target: Target
    text: ModelText
    info: EngineInfo
    sandbox: GrammarSandbox
    defaults: Mapping[str, float] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Which weights answer: of a deployment its name does not tell."""
        return self.target.label

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every answer, which say which weights have answered, and as a part of which recorded episode."""
        deployed = self.target.deployed
        recorded = {EPISODE_HEADER: deployed.episode_id} if deployed and deployed.deployment.recording.record else {}
        return {"x-loreloop-revision": self.fingerprint} | recorded


@dataclass(frozen=True)
class Report:
    """What a caller wants to know beside the tokens."""

    top_logprobs: int = 0
    filtered_logprobs: bool = False
    scores: PromptScores = field(default_factory=PromptScores)


async def find_model(request: Request, name: str, user: object = None, marks: Marks = NO_MARKS) -> Model:
    """`user`, where it is a text, and the episode decide which arm of a deployment's canary answers."""
    key, served = asker(request), services(request)
    may_use(key, name)
    # Looked up anew with every request, because a deployment may have changed since the last.
    target = served.names.target(served.store, key, name, asking_of(user, marks))
    if target.checkpoint is not None:
        await note_daily_read(request, key, target.checkpoint, "sampling")
    # What nobody deployed takes any user and any metadata, as clients of OpenAI's send them.
    if target.deployed is not None:
        marks.check(user, is_recorded=target.deployed.deployment.recording.record)
    text = served.texts.of(served.names.folder(target.base_model))
    defaults = text.defaults if served.config.generation_config else {}
    return Model(
        name=name,
        owner=key.id,
        target=target,
        text=text,
        info=await served.dispatcher.info(target.base_model),
        sandbox=served.sandbox,
        defaults=defaults,
    )


async def encoded(model: Model, text: str, *, special: bool) -> Encoded:
    """The text in tokens, with `special` also those that the tokenizer puts around every text; BadRequest where they
    are far over the model's window. A long one is read in a thread, so that nobody waits for it, and a short one at
    once, so that it waits for nobody's long one."""
    read, most = partial(model.text.tokenizer.encode_within, special=special), most_tokens(model.info)
    # A short text is read on the event loop, where it takes no longer than handing it to a thread.
    found = read(text, most) if len(text) <= SHORT_TEXT else await asyncio.to_thread(read, text, most)
    if found is None:
        raise too_long(f"over {most}", 1, model.info)
    return found


def most_tokens(info: EngineInfo) -> int:
    """How many tokens of a text are counted at most; a longer one is too long in any case, and need not be read to its
    end."""
    return COUNTED_WINDOWS * info.context_window


async def operation(
    model: Model, prompt: tuple[Chunk, ...], wire: WireSamplingParams, n: int, report: Report, *, stream: bool
) -> SampleOp:
    """The checked operation; the end-of-sequence ids end a text always, stop strings besides."""
    grammar = await model.sandbox.grammar_of(Rules(wire.grammar, wire.json_schema, wire.regex), model.info)
    n_prompt = length_of(prompt)
    # This comes before the checks, which would refuse what does not fit.
    most = within_window(wire.max_tokens, n_prompt, model.info)
    wire = msgspec.structs.replace(wire, grammar=grammar, max_tokens=most)
    params = check_params(wire, n_prompt, model.info, fresh_seed())
    return SampleOp(
        request_id=f"gen-{uuid.uuid4().hex}",
        owner=model.owner,
        revision=model.target.revision,
        prompt=prompt,
        num_samples=n,
        # The protocol's stop tokens are the caller's; here the model's own ends count, which no client knows.
        params=msgspec.structs.replace(params, stop_tokens=model.info.eos_token_ids),
        scores=report.scores,
        topk_sample_logprobs=report.top_logprobs,
        filtered_logprobs=report.filtered_logprobs,
        stream=stream,
    )


def within_window(max_tokens: int | None, n_prompt: int, info: EngineInfo) -> int | None:
    """Agents ask for as many tokens as the largest models give; here an answer ends with the window, as `length`."""
    room = info.context_window - n_prompt
    return max_tokens if max_tokens is None or room < 1 else min(max_tokens, room)


async def results(request: Request, model: Model, ops: Sequence[SampleOp]) -> list[SampleResult]:
    """All results; a client that leaves meanwhile cancels what is left."""
    return await while_there(request, all_drawn(services(request), model, ops))


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. A client that leaves ends it at once, and then ClientDisconnect is raised."""
    # Both run as tasks, so that either can end the other.
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_leaves(request))
    try:
        # Reading from the client is the only way to learn that it has left.
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        await end(working, leaving)


async def _leaves(request: Request) -> None:
    """Returns when the client has; nothing else can come behind a body."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def all_drawn(served: Services, model: Model, ops: Sequence[SampleOp]) -> list[SampleResult]:
    """The results of all operations, in their order; BadRequest or ServerError where one fails. What is unfinished then
    is cancelled."""
    try:
        for op in ops:
            served.dispatcher.sample(op, model.target.base_model)
        return [unfailing(await served.dispatcher.sample_result(op.request_id, None)) for op in ops]
    finally:
        forget(served, ops)


def prompt_only(result: SampleResult) -> SampleResult:
    """The result for who wanted no tokens."""
    # The engine draws at least one token; whoever asked for none must not see it.
    none = SampledSequence(tokens=pack_ids([]), logprobs=pack_logprobs([]), stop_reason="length")
    return msgspec.structs.replace(result, sequences=(none,) * len(result.sequences))


def unfailing(result: SampleResult | Failure | None) -> SampleResult:
    """The result, or its failure as an error: BadRequest where the request was at fault, ServerError where the server
    was, Unavailable where a later try may succeed."""
    assert result is not None, "only a wait with a bound ends without a result"
    if isinstance(result, Failure):
        if result.passing:
            raise Unavailable(result.message)
        raise (BadRequest if result.category == "user" else ServerError)(result.message)
    return result


def forget(served: Services, ops: Sequence[SampleOp]) -> None:
    """Nobody waits for these any more; what is unfinished is cancelled."""
    for op in ops:
        served.dispatcher.forget(op.request_id)


def start(served: Services, model: Model, ops: Sequence[SampleOp]) -> None:
    """Hands operations in whose tokens `followed` will give; all or none. Whoever starts them must `forget` them."""
    started: list[SampleOp] = []
    try:
        for op in ops:
            served.dispatcher.sample(op, model.target.base_model)
            started.append(op)
    except LoreloopError:
        # All or none: with an error nobody will ever read what has begun already.
        for op in started:
            served.dispatcher.forget(op.request_id)
        raise


async def followed(
    served: Services, ops: Sequence[SampleOp]
) -> AsyncIterator[tuple[int, Token | SampleResult | Failure]]:
    """(number of the operation, what it brought), as it comes, until all have ended."""
    # One queue brings the streams of all operations together in the order in which things happen.
    queue: asyncio.Queue[tuple[int, Token | SampleResult | Failure] | Exception] = asyncio.Queue()

    async def follow(number: int, request_id: str) -> None:
        async for item in served.dispatcher.stream(request_id):
            queue.put_nowait((number, item))

    def tell_error(follower: asyncio.Future[None]) -> None:
        if not follower.cancelled() and isinstance(error := follower.exception(), Exception):
            queue.put_nowait(error)

    followers = [asyncio.ensure_future(follow(number, op.request_id)) for number, op in enumerate(ops)]
    for follower in followers:
        follower.add_done_callback(tell_error)
    n_open = len(ops)
    try:
        while n_open:
            event = await queue.get()
            if isinstance(event, Exception):
                raise event
            number, item = event
            # Anything that is not a token ends its operation.
            n_open -= not isinstance(item, Token)
            yield number, item
    finally:
        for follower in followers:
            follower.cancel()

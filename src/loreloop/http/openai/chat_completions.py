"""OpenAI's chat completions: whole, streamed, or as a loop that calls registered tools."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import read_as_sent
from loreloop.http.generation.answering import answered
from loreloop.http.generation.chat import chat_with_images
from loreloop.http.generation.marks import marks_of
from loreloop.http.generation.memory_named import Wanted
from loreloop.http.generation.recording import TurnRecording
from loreloop.http.generation.remembered import remembering
from loreloop.http.generation.requests import find_model, followed
from loreloop.http.openai.agent_completions import agent_answer
from loreloop.http.openai.answer_format import failure_event, usage
from loreloop.http.openai.chat_format import PendingAnswer, StreamedReply, chat_request_of
from loreloop.http.services import Services, asker, now, services
from loreloop.http.sse import data_event
from loreloop.protocol.openai_rest import ChatCompletion
from loreloop.protocol.sampling import SampleResult
from loreloop.protocol.training import Failure


async def chat_completions(request: Request) -> Response:
    """OpenAI's route for chats: the answer whole, as a stream, or as a loop over registered tools."""
    asker(request)
    body = await read_as_sent(request, ChatCompletion)
    marks = marks_of(request, body.episode_id, body.metadata)
    model = await find_model(request, body.model, body.user, marks)
    recording = TurnRecording(services(request).recorder, model, marks)
    if body.agent_loop is not None:
        return await agent_answer(request, body, recording)
    memory = await remembering(request, model, chat_request_of(body), Wanted(body.memory, body.user))
    chat = await chat_with_images(services(request).pictures, model, memory.chat_request)
    pending = PendingAnswer(body=body, chat=chat, created=int(now()), memory=memory, recording=recording)
    recording.begin(chat, memory.chat_request.conversation, pending.id)
    stream = events(services(request), pending) if body.stream else None
    return await answered(request, model, [chat.op], pending.whole, stream, recording)


async def events(served: Services, pending: PendingAnswer) -> AsyncIterator[bytes]:
    """The chunks of a stream, those of all samples mixed as they come, and the usage last where it was asked for."""
    # All samples of a request come over one stream; each chunk names its own by the index.
    samples = [StreamedReply(pending, index) for index in range(pending.chat.op.num_samples)]
    found: list[SampleResult] = []
    for sample in samples:
        yield data_event(sample.begin())
    async for _, item in followed(served, [pending.chat.op]):
        if isinstance(item, Failure):
            pending.recording.fail()
            yield failure_event(item)
        elif isinstance(item, SampleResult):
            found.append(item)
            for sample, sequence in zip(samples, item.sequences, strict=True):
                *rest, last = sample.end(sequence)
                for event in [*rest, last | await pending.memory.keep()]:
                    yield data_event(event)
        else:
            for event in samples[item.sample_index].push(item):
                yield data_event(event)
    if pending.body.stream_options and pending.body.stream_options.include_usage:
        yield data_event(
            pending.frame("chat.completion.chunk") | {"choices": [], "usage": usage([pending.chat.op], found)}
        )
    yield b"data: [DONE]\n\n"


ROUTES = [Route("/chat/completions", chat_completions, methods=["POST"])]

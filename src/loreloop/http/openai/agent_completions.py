"""Chat completions of a server-side loop, whole or streamed, for clients of OpenAI's API.

Not of OpenAI: `tool_trace` in a whole answer, and in a stream chunks whose delta holds `tool_activity`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from loreloop.http.bodies import answer
from loreloop.http.generation.agent_loop import (
    AgentRun,
    Began,
    Called,
    Finished,
    LiveRun,
    Returned,
    Tools,
    drawn_live,
    drawn_whole,
    tools_of,
)
from loreloop.http.generation.chat import Chat, ChatRequest, with_pictures
from loreloop.http.generation.memory_named import Wanted
from loreloop.http.generation.recording import TurnRecording
from loreloop.http.generation.remembered import Remembering, remembering
from loreloop.http.generation.requests import while_there
from loreloop.http.openai.answer_format import failure_event, usage
from loreloop.http.openai.chat_format import PendingAnswer, chat_request_of, delta_of, last_delta, message_of
from loreloop.http.services import INFER, caller, now, services
from loreloop.http.sse import EventStream, data_event
from loreloop.mcp.toolbox import Bounds
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.openai_rest import AgentLoop, ChatCompletion, McpTool
from loreloop.protocol.training import Failure
from loreloop.text.replies import WholeReply


async def agent_answer(request: Request, body: ChatCompletion, recording: TurnRecording) -> Response:
    """The answer of a loop over tools, whole or as a stream. BadRequest where `n` or log-probabilities are asked for
    that a loop does not give."""
    if (body.n or 1) > 1:
        raise BadRequest("agent_loop is not served with n > 1; leave one of them out.")
    wanted, model = body.agent_loop or AgentLoop(), recording.model
    labels = [tool.server_label for tool in body.tools or () if isinstance(tool, McpTool)]
    if labels:  # registered servers are not part of any deployment
        caller(request, INFER)
    bounds = Bounds(wanted.max_calls, wanted.max_seconds, wanted.max_output_bytes)
    tools = tools_of(services(request), model, labels, bounds)
    memory = await remembering(request, model, chat_request_of(body), Wanted(body.memory, body.user))
    chat_request = await with_pictures(services(request).pictures, model, memory.chat_request)
    kept = Kept(memory, recording)
    if not body.stream:
        run = AgentRun(model, chat_request, drawn_whole(services(request), model))
        # A loop may take minutes, so a client that leaves must end it.
        return await while_there(request, whole_answer(run, body, tools, kept))
    if body.logprobs:
        raise BadRequest("logprobs is not served with agent_loop in a stream; leave one of them out.")
    run = AgentRun(model, chat_request, drawn_live(services(request), model))
    live = LiveRun(run, tools)
    # The first answer is waited for before the stream begins: what stands in its way is then an error with a status
    # code.
    return streamed_answer(live, kept.pending(body, (await while_there(request, live.first())).chat, chat_request), run)


def streamed_answer(live: LiveRun, pending: PendingAnswer, run: AgentRun) -> Response:
    """The answer of a loop that has begun, as a stream."""
    pending.recording.go_live()

    def over() -> None:
        live.end()
        pending.recording.leave()

    return EventStream(AgentStream(pending, run).events(live), run.model.headers, over)


@dataclass(frozen=True)
class Kept:
    """What a loop leaves behind."""

    memory: Remembering
    recording: TurnRecording

    def pending(self, body: ChatCompletion, chat: Chat, asked: ChatRequest) -> PendingAnswer:
        """The answer that is on its way; it goes by the id of `chat`, whichever answer of the loop that is."""
        made = PendingAnswer(body=body, chat=chat, created=int(now()), memory=self.memory, recording=self.recording)
        self.recording.begin(chat, asked.conversation, made.id)
        return made


async def whole_answer(run: AgentRun, body: ChatCompletion, tools: Tools, kept: Kept) -> Response:
    """Runs the loop to its end and answers with the last message, the usage of all answers and a trace of the calls."""
    trace: list[dict[str, Any]] = []
    async with tools.open() as box:
        async for event in run.events(box):
            if isinstance(event, Returned):
                call = event.call
                trace.append({"name": call.name, "arguments": call.arguments, "output": event.output})
            elif isinstance(event, Finished):
                pending = kept.pending(body, event.chat, run.chat_request)
                choice = pending.choice(0, event.result.sequences[0], event.reply, event.made)
                remembered = await kept.memory.keep(made=event.made, whole=event.reply)
    fields = {"choices": [choice], "usage": usage(run.ops, run.found), "tool_trace": trace} | remembered
    response = answer(pending.frame("chat.completion") | fields)
    response.headers.update(run.model.headers)
    return response


@dataclass
class AgentStream:
    """One stream; all its chunks carry the first answer's id."""

    pending: PendingAnswer
    run: AgentRun

    async def events(self, live: LiveRun) -> AsyncIterator[bytes]:
        """The stream: text and thoughts of every answer, what each tool was asked and gave, the caller's calls, the
        usage."""
        yield self.chunk({"role": "assistant", "content": ""})
        async for event in live.rest():
            match event:
                case Failure():
                    self.pending.recording.fail()
                    yield failure_event(event)
                case Called(call):
                    activity = {"type": "call", "id": call.call_id, "name": call.name, "arguments": call.arguments}
                    yield self.chunk({"tool_activity": activity})
                case Returned(call, output):
                    activity = {"type": "result", "id": call.call_id, "name": call.name, "output": output}
                    yield self.chunk({"tool_activity": activity})
                case Finished(chat, reply, result, made):
                    calls = calls_of(reply)
                    reason = result.sequences[0].stop_reason
                    # An answer that was cut off at its length says so, even if it holds calls.
                    finish = "tool_calls" if calls and reason == "stop" else reason
                    self.pending.recording.keep(0, result.sequences[0], reply, made, chat)
                    activity = await self.pending.memory.keep(made=made, whole=reply)
                    called = self.chunk({"tool_calls": calls}) if calls else b""
                    yield called + self.chunk(last_delta(chat), finish, activity)
                case Began():
                    pass
                case _:
                    yield self.chunk(delta_of(event))
        options = self.pending.body.stream_options
        # The usage covers all answers of the loop, since every one of them was computed for this request.
        if options and options.include_usage:
            counted = {"choices": [], "usage": usage(self.run.ops, self.run.found)}
            yield data_event(self.pending.frame("chat.completion.chunk") | counted)
        yield b"data: [DONE]\n\n"

    def chunk(self, delta: dict[str, Any], finish: str | None = None, fields: dict[str, Any] | None = None) -> bytes:
        """One chunk of the stream with this delta; `finish` is the reason for the end, in the last one."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return data_event(self.pending.frame("chat.completion.chunk") | {"choices": [choice]} | (fields or {}))


def calls_of(reply: WholeReply) -> list[dict[str, Any]]:
    """The calls that are left to the caller, as a delta holds them."""
    made = message_of(reply).get("tool_calls", [])
    return [{"index": index, **call} for index, call in enumerate(made)]

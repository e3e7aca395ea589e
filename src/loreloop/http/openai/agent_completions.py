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
from loreloop.http.generation.chat import WholeReply, seen
from loreloop.http.generation.remembered import Remembering, Wanted, remembering
from loreloop.http.generation.requests import Model, while_there
from loreloop.http.openai.answer_format import failure_event, usage
from loreloop.http.openai.chat_format import Asked, ask_of, delta_of, last_delta, message_of
from loreloop.http.services import INFER, caller, now, services
from loreloop.http.sse import EventStream, data_event
from loreloop.mcp.toolbox import Bounds
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.openai_rest import AgentLoop, ChatCompletion, McpTool
from loreloop.protocol.training import Failure


async def agent_answer(request: Request, body: ChatCompletion, model: Model) -> Response:
    """The answer of a loop over tools, whole or as a stream. BadRequest where `n` or log-probabilities are asked for
    that a loop does not give."""
    if (body.n or 1) > 1:
        raise BadRequest("agent_loop is not served with n > 1; leave one of them out.")
    wanted = body.agent_loop or AgentLoop()
    labels = [tool.server_label for tool in body.tools or () if isinstance(tool, McpTool)]
    if labels:  # registered servers are not part of any deployment
        caller(request, INFER)
    bounds = Bounds(wanted.max_calls, wanted.max_seconds, wanted.max_output_bytes)
    tools = tools_of(services(request), model, labels, bounds)
    memory = await remembering(request, model, ask_of(body), Wanted(body.memory, body.user))
    ask = await seen(services(request).pictures, model, memory.ask)
    if not body.stream:
        run = AgentRun(model, ask, drawn_whole(services(request), model))
        return await while_there(request, whole_answer(run, body, tools, memory))
    if body.logprobs:
        raise BadRequest("logprobs is not served with agent_loop in a stream; leave one of them out.")
    run = AgentRun(model, ask, drawn_live(services(request), model))
    live = LiveRun(run, tools)
    told = Telling(Asked(body, (await while_there(request, live.first())).chat, int(now()), memory), run)
    return EventStream(told.events(live), model.headers, live.end)


async def whole_answer(run: AgentRun, body: ChatCompletion, tools: Tools, memory: Remembering) -> Response:
    trace: list[dict[str, Any]] = []
    async with tools.open() as box:
        async for event in run.events(box):
            if isinstance(event, Returned):
                call = event.call
                trace.append({"name": call.name, "arguments": call.arguments, "output": event.output})
            elif isinstance(event, Finished):
                asked = Asked(body, event.chat, int(now()), memory)
                choice = asked.choice(0, event.result.sequences[0])
                remembered = await memory.keep(made=event.made, whole=event.reply)
    said = {"choices": [choice], "usage": usage(run.ops, run.found), "tool_trace": trace} | remembered
    response = answer(asked.frame("chat.completion") | said)
    response.headers.update(run.model.headers)
    return response


@dataclass
class Telling:
    """One stream; all its chunks carry the first answer's id."""

    asked: Asked
    run: AgentRun

    async def events(self, live: LiveRun) -> AsyncIterator[bytes]:
        """The stream: text and thoughts of every answer, what each tool was asked and gave, the caller's calls, the
        usage."""
        yield self.chunk({"role": "assistant", "content": ""})
        async for event in live.rest():
            match event:
                case Failure():
                    yield failure_event(event)
                case Called(call):
                    told = {"type": "call", "id": call.call_id, "name": call.name, "arguments": call.arguments}
                    yield self.chunk({"tool_activity": told})
                case Returned(call, output):
                    told = {"type": "result", "id": call.call_id, "name": call.name, "output": output}
                    yield self.chunk({"tool_activity": told})
                case Finished(chat, reply, result, made):
                    calls = calls_of(reply)
                    reason = result.sequences[0].stop_reason
                    # An answer that was cut off at its length says so, even if it holds calls.
                    finish = "tool_calls" if calls and reason == "stop" else reason
                    told = await self.asked.memory.keep(made=made, whole=reply)
                    called = self.chunk({"tool_calls": calls}) if calls else b""
                    yield called + self.chunk(last_delta(chat), finish, told)
                case Began():
                    pass
                case _:
                    yield self.chunk(delta_of(event))
        options = self.asked.body.stream_options
        # The usage covers all answers of the loop, since every one of them was computed for this request.
        if options and options.include_usage:
            counted = {"choices": [], "usage": usage(self.run.ops, self.run.found)}
            yield data_event(self.asked.frame("chat.completion.chunk") | counted)
        yield b"data: [DONE]\n\n"

    def chunk(self, delta: dict[str, Any], finish: str | None = None, told: dict[str, Any] | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return data_event(self.asked.frame("chat.completion.chunk") | {"choices": [choice]} | (told or {}))


def calls_of(reply: WholeReply) -> list[dict[str, Any]]:
    """The calls that are left to the caller, as a delta holds them."""
    made = message_of(reply).get("tool_calls", [])
    return [{"index": index, **call} for index, call in enumerate(made)]

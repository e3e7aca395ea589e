"""OpenAI's chat completions: a body to a chat, a reply's pieces to messages and deltas.

Not of OpenAI: `reasoning_content` beside the content, and `warning` where a tool call was broken.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import answer, read_json
from loreloop.http.chat import BROKEN_CALL, Chat, ChatAsk, WholeReply, chat_on, whole_reply
from loreloop.http.generate import Model, Report, find_model, forget, heard, results, start
from loreloop.http.logprobs import Scored, chat_logprobs, scored_sequence, scored_token
from loreloop.http.openai_words import failure_event, frame, usage, wire_params
from loreloop.http.services import Services, asker, now, services
from loreloop.http.sse import EventStream, data_event
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.link import Token
from loreloop.protocol.openai_rest import (
    AgentLoop,
    ChatCompletion,
    ChatMessage,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    McpTool,
    NamedTool,
    RefusalPart,
    TextPart,
    ToolBody,
)
from loreloop.protocol.rest import WireSamplingParams
from loreloop.protocol.sampling import SampledSequence, SampleOp, SampleResult
from loreloop.protocol.training import Failure
from loreloop.serve.toolbox import Bounds, ToolBox, ToolCaller, open_toolbox
from loreloop.store import tools as tool_rows
from loreloop.store.rows import ToolCallRecord
from loreloop.text.conversation import Conversation, MadeCall, Turn
from loreloop.text.tool_calls import Broken, CallArguments, CallBegins, CallEnds, Content, Piece, Thinking, Tool


async def chat_completions(request: Request) -> Response:
    asker(request)
    body = await read_json(request, ChatCompletion)
    model = await find_model(request, body.model, body.user)
    if body.agent_loop is not None:
        return await agent_answer(request, body, model)
    asked = Asked(body, chat_on(model, ask_of(body)), int(now()))
    if body.stream:
        start(services(request), model, [asked.chat.op])
        at_end = partial(forget, services(request), [asked.chat.op])
        return EventStream(events(services(request), asked), model.headers, at_end)
    (result,) = await results(request, model, [asked.chat.op])
    choices = [asked.choice(index, sequence) for index, sequence in enumerate(result.sequences)]
    response = answer(asked.frame("chat.completion") | {"choices": choices, "usage": usage([asked.chat.op], [result])})
    response.headers.update(model.headers)
    return response


# from the body


def ask_of(body: ChatCompletion) -> ChatAsk:
    settings = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        settings |= {"reasoning_effort": body.reasoning_effort, "enable_thinking": body.reasoning_effort != "none"}
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true beside it.")
    turns = tuple(turn_of(message) for message in body.messages)
    tools = tuple(tool_of(tool) for tool in body.tools or () if isinstance(tool, ToolBody))
    if body.agent_loop is None and len(tools) < len(body.tools or ()):
        raise BadRequest("Tools of type 'mcp' are called by the server itself; opt in with agent_loop: {}.")
    wire = formatted(body, wire_params(body, body.max_completion_tokens or body.max_tokens))
    choice = body.tool_choice or "auto"
    return ChatAsk(
        Conversation(turns, tools, settings),
        wire,
        f"={choice.function.name}" if isinstance(choice, NamedTool) else choice,
        body.parallel_tool_calls is not False,
        body.n or 1,
        bool(body.stream),
        Report(body.top_logprobs or 0, bool(body.filtered_logprobs)),
    )


def formatted(body: ChatCompletion, wire: WireSamplingParams) -> WireSamplingParams:
    """With the response format as a schema."""
    schema = None
    if isinstance(body.response_format, JsonObjectFormat):
        schema = {"type": "object"}
    elif isinstance(body.response_format, JsonSchemaFormat):
        schema = body.response_format.json_schema.schema_
    return msgspec.structs.replace(wire, json_schema=schema)


def turn_of(message: ChatMessage) -> Turn:
    calls = tuple(MadeCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ())
    if message.role == "tool" and message.tool_call_id is None:
        raise BadRequest("A message of role 'tool' must say in tool_call_id which call it answers.")
    role = "system" if message.role == "developer" else message.role
    thinking = message.reasoning_content or message.reasoning
    return Turn(role, text_of(message.content), thinking, calls, message.tool_call_id, message.name)


def text_of(content: str | Sequence[TextPart | RefusalPart | ImagePart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if isinstance(part, ImagePart):
            raise BadRequest("This model reads text only; leave image_url parts out, or ask a vision model.")
        texts.append(part.text if isinstance(part, TextPart) else part.refusal)
    return "".join(texts)


def tool_of(tool: ToolBody) -> Tool:
    function = tool.function
    parameters = function.parameters or {"type": "object", "properties": {}}
    return Tool(function.name, function.description or "", parameters, bool(function.strict))


# to the answer


@dataclass(frozen=True)
class Asked:
    body: ChatCompletion
    chat: Chat
    created: int

    def frame(self, kind: str) -> dict[str, Any]:
        return frame("chatcmpl", kind, self.chat.op, self.body.model, self.created, self.chat.model)

    def choice(self, index: int, sequence: SampledSequence) -> dict[str, Any]:
        scored = scored_sequence(sequence)
        reply = whole_reply(self.chat, [one.token for one in scored])
        finish = "tool_calls" if reply.calls and sequence.stop_reason == "stop" else sequence.stop_reason
        return {
            "index": index,
            "message": message_of(reply),
            "finish_reason": finish,
            "logprobs": self.logprobs(scored),
        }

    def logprobs(self, scored: Sequence[Scored]) -> dict[str, Any] | None:
        return chat_logprobs(scored, self.chat.model.text.tokenizer) if self.body.logprobs else None


def message_of(reply: WholeReply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.thinking:
        message["reasoning_content"] = reply.thinking
    if reply.calls:
        message["content"] = reply.content or None
        message["tool_calls"] = [
            {
                "id": call.call_id or new_call_id(),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in reply.calls
        ]
    if reply.broken:
        message["warning"] = BROKEN_CALL
    return message


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class StreamedReply:
    """One sample of a stream: log-probabilities leave with the next delta after them."""

    def __init__(self, asked: Asked, index: int) -> None:
        self.asked, self.index, self.reply = asked, index, asked.chat.reply()
        self.waiting: list[Scored] = []
        self.held: list[Piece] = []
        self.n_calls = 0

    def begin(self) -> dict[str, Any]:
        return self._event({"role": "assistant", "content": ""}, None)

    def push(self, token: Token) -> list[dict[str, Any]]:
        self.waiting.append(scored_token(token))
        return self._events(self.reply.push(token.token))

    def end(self, sequence: SampledSequence) -> list[dict[str, Any]]:
        rest = self._events(self.reply.flush())
        finish = "tool_calls" if self.n_calls and sequence.stop_reason == "stop" else sequence.stop_reason
        return [*rest, self._event({}, finish)]

    def _certain(self, pieces: Sequence[Piece]) -> list[Piece]:
        """A call that no grammar forces is told when it is whole: clients cannot take one back."""
        if self.asked.chat.op.params.grammar:
            return list(pieces)
        certain: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, CallBegins | CallArguments):
                self.held.append(piece)
                continue
            if isinstance(piece, CallEnds):
                certain += self.held
            if isinstance(piece, CallEnds | Broken):
                self.held = []
            certain.append(piece)
        return certain

    def _events(self, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        pieces = self._certain(pieces)
        self.n_calls += sum(isinstance(piece, CallEnds) for piece in pieces)
        return [self._event(delta, None) for piece in pieces if (delta := delta_of(piece))]

    def _event(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        scored, self.waiting = self.waiting, []
        logprobs = self.asked.logprobs(scored) if scored else None
        choice = {"index": self.index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return self.asked.frame("chat.completion.chunk") | {"choices": [choice]}


def delta_of(piece: Piece) -> dict[str, Any]:
    match piece:
        case Content(text):
            return {"content": text}
        case Thinking(text):
            return {"reasoning_content": text}
        case CallBegins(index, call_id, name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id or new_call_id(), "type": "function", "function": function}
            return {"tool_calls": [call]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        case Broken(text):
            return {"content": text, "warning": BROKEN_CALL}
        case CallEnds():
            return {}


async def events(served: Services, asked: Asked) -> AsyncIterator[bytes]:
    samples = [StreamedReply(asked, index) for index in range(asked.chat.op.num_samples)]
    found: list[SampleResult] = []
    for sample in samples:
        yield data_event(sample.begin())
    async for _, item in heard(served, [asked.chat.op]):
        if isinstance(item, Failure):
            yield failure_event(item)
        elif isinstance(item, SampleResult):
            found.append(item)
            for sample, sequence in zip(samples, item.sequences, strict=True):
                for event in sample.end(sequence):
                    yield data_event(event)
        else:
            for event in samples[item.sample_index].push(item):
                yield data_event(event)
    if asked.body.stream_options and asked.body.stream_options.include_usage:
        yield data_event(asked.frame("chat.completion.chunk") | {"choices": [], "usage": usage([asked.chat.op], found)})
    yield b"data: [DONE]\n\n"


# the loop on the server


async def agent_answer(request: Request, body: ChatCompletion, model: Model) -> Response:
    """Answers, calls registered tools, and goes on, until an answer without calls, a call of the caller's own tools,
    or a bound; `tool_trace` tells what was called."""
    if body.stream or (body.n or 1) > 1:
        raise BadRequest("agent_loop is served neither with stream nor with n > 1; leave one of them out.")
    served, wanted = services(request), body.agent_loop or AgentLoop()
    labels = [tool.server_label for tool in body.tools or () if isinstance(tool, McpTool)]
    servers = [served.store.read(tool_rows.find, label) for label in dict.fromkeys(labels)]

    async def record(call: ToolCallRecord) -> None:
        await served.store.write(tool_rows.record, call)

    run = AgentRun(request, model, ask_of(body))
    bounds = Bounds(wanted.max_calls, wanted.max_seconds, wanted.max_output_bytes)
    async with open_toolbox(servers, bounds, ToolCaller(model.owner, f"agent-{uuid.uuid4().hex}", record)) as box:
        asked, result = await run.until_done(box, body)
    choice = asked.choice(0, result.sequences[0])
    said = {"choices": [choice], "usage": usage(run.ops, run.found), "tool_trace": run.trace}
    response = answer(asked.frame("chat.completion") | said)
    response.headers.update(model.headers)
    return response


@dataclass
class AgentRun:
    """One request's loop: every answer and every call so far."""

    request: Request
    model: Model
    ask: ChatAsk
    ops: list[SampleOp] = field(default_factory=list)
    found: list[SampleResult] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)

    async def until_done(self, box: ToolBox, body: ChatCompletion) -> tuple[Asked, SampleResult]:
        turns, choice = self.ask.conversation.turns, self.ask.choice
        while True:
            tools = (*self.ask.conversation.tools, *box.tools)
            conversation = replace(self.ask.conversation, turns=turns, tools=tools)
            chat = chat_on(self.model, replace(self.ask, conversation=conversation, choice=choice))
            (result,) = await results(self.request, self.model, [chat.op])
            self.ops.append(chat.op)
            self.found.append(result)
            reply = whole_reply(chat, [one.token for one in scored_sequence(result.sequences[0])])
            mine = all(box.holds(call.name) for call in reply.calls)
            if not reply.calls or not mine or box.spent:
                return Asked(body, chat, int(now())), result
            turns += await self._call(box, reply)
            choice = "auto"  # what was forced has been done

    async def _call(self, box: ToolBox, reply: WholeReply) -> tuple[Turn, ...]:
        calls = tuple(MadeCall(call.call_id or new_call_id(), call.name, call.arguments) for call in reply.calls)
        told = [Turn("assistant", reply.content, reply.thinking or None, calls)]
        for call in calls:
            output = "No more calls are allowed." if box.spent else await box.call(call.name, call.arguments)
            self.trace.append({"name": call.name, "arguments": call.arguments, "output": output})
            told.append(Turn("tool", output, call_id=call.call_id))
        return tuple(told)


ROUTES = [Route("/chat/completions", chat_completions, methods=["POST"])]

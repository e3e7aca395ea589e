"""Anthropic's messages: a body to a chat, a reply's blocks to content blocks and events, and counting tokens.

Not of Anthropic: `warning`, of the message or the delta that ends it, where a tool call was broken or cut off.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.anthropic.context_edits import managed
from loreloop.http.bodies import answer, read_as_sent
from loreloop.http.generation.answering import answered
from loreloop.http.generation.chat import Chat, ChatRequest, chat_on, left_open, prompt_length, with_pictures
from loreloop.http.generation.marks import marks_of
from loreloop.http.generation.memory_named import Wanted
from loreloop.http.generation.recording import TurnRecording
from loreloop.http.generation.remembered import Remembering, recalled_request, remembering
from loreloop.http.generation.reply_blocks import Block, BlockEvent, Blocks, Closed, Grown, Opened, read_blocks
from loreloop.http.generation.requests import Model, find_model, followed, prompt_only
from loreloop.http.services import Services, asker, services
from loreloop.http.sse import named_event
from loreloop.protocol.anthropic_rest import (
    Choice,
    CountTokens,
    Document,
    Image,
    Message,
    Messages,
    RedactedThinking,
    Text,
    ThinkingPart,
    ToolResult,
    ToolUse,
)
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.link import Token
from loreloop.protocol.rest import WireSamplingParams
from loreloop.protocol.sampling import SampledSequence, SampleResult
from loreloop.protocol.token_ids import n_ids
from loreloop.protocol.training import Failure, length_of
from loreloop.text.conversation import Conversation, MadeCall, Picture, Turn, turn_of_parts
from loreloop.text.replies import Reply
from loreloop.text.tools.json_scan import whole_part
from loreloop.text.tools.tool_calls import Tool


async def messages(request: Request) -> Response:
    """Anthropic's route for messages: the answer whole or as a stream of events."""
    asker(request)
    body = await read_as_sent(request, Messages)
    marks = marks_of(request, body.episode_id, body.metadata)
    model = await find_model(request, body.model, (body.metadata or {}).get("user_id"), marks)
    chat_request = chat_request_of(body, params_of(body), stream=bool(body.stream))
    memory = await remembering(request, model, chat_request, wanted_of(body))
    edited = await managed(
        model, await with_pictures(services(request).pictures, model, memory.chat_request), body.context_management
    )
    recording = TurnRecording(services(request).recorder, model, marks)
    pending = PendingAnswer(
        body=body,
        chat=await chat_on(model, edited.chat_request),
        applied=edited.applied,
        memory=memory,
        recording=recording,
    )
    # A prompt that is only read has no answer to learn from.
    if not pending.prompt_only:
        recording.begin(pending.chat, edited.chat_request.conversation, pending.id)
    stream = events(services(request), pending) if body.stream else None
    return await answered(request, model, [pending.chat.op], pending.whole, stream, recording)


async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of such a request has; where its context is managed, also how many it had before."""
    asker(request)
    body = await read_as_sent(request, CountTokens)
    model: Model = await find_model(request, body.model)
    chat_request = await recalled_request(
        request, model, chat_request_of(body, WireSamplingParams(), stream=False), wanted_of(body)
    )
    chat_request = await with_pictures(services(request).pictures, model, chat_request)
    edited = await managed(model, chat_request, body.context_management)
    counted: dict[str, Any] = {"input_tokens": await prompt_length(model, edited.chat_request.conversation)}
    if body.context_management is not None:
        counted["context_management"] = {"original_input_tokens": await prompt_length(model, chat_request.conversation)}
    return answer(counted)


# from the body


def params_of(body: Messages) -> WireSamplingParams:
    """The request's sampling parameters as the protocol's, with the output format as a schema."""
    given = {
        name: value for name in ("temperature", "top_p", "top_k", "seed") if (value := getattr(body, name)) is not None
    }
    form = body.output_config.format if body.output_config else None
    schema = form.schema_ if form else None
    return WireSamplingParams(max_tokens=body.max_tokens, stop=body.stop_sequences or None, json_schema=schema, **given)


def chat_request_of(body: CountTokens, wire: WireSamplingParams, *, stream: bool) -> ChatRequest:
    """The chat that a body asks for. A last message of the assistant's is the beginning of the answer. BadRequest where
    a tool is to be called and none is named."""
    system = body.system if isinstance(body.system, str) else "\n\n".join(part.text for part in body.system or ())
    # Anthropic's system text stands beside the messages; templates expect it as the first of them.
    turns = [Turn("system", system)] if system else []
    for message in body.messages:
        turns += turns_of(message)
    tools = tuple(
        Tool(tool.name, tool.description or "", tool.input_schema, bool(tool.strict)) for tool in body.tools or ()
    )
    choice, settings = body.tool_choice or Choice(type="auto"), dict[str, Any]()
    if body.thinking is not None:
        settings["enable_thinking"] = body.thinking.type != "disabled"
    if body.output_config and body.output_config.effort is not None:
        settings["reasoning_effort"] = body.output_config.effort
    if choice.type == "tool" and choice.name is None:
        raise BadRequest("tool_choice of type 'tool' must name one.")
    # Anthropic's words for the choice of a tool, translated into OpenAI's, which the rest of the server uses.
    wanted = {"auto": "auto", "none": "none", "any": "required", "tool": f"={choice.name}"}[choice.type]
    parallel = not choice.disable_parallel_tool_use
    begun = thought = ""
    if turns and turns[-1].role == "assistant" and not turns[-1].calls:
        last = turns.pop()  # here the last message of an assistant is one to go on with
        if last.parts:
            raise BadRequest("The last message, with which the answer begins, holds an image; leave that out.")
        begun, thought = last.content, last.thinking or ""
    conversation = Conversation(tuple(turns), tools, settings, begun, thought)
    return ChatRequest(
        conversation=conversation, wire=wire, choice=wanted, parallel=parallel, stream=stream, left_open=left_open(body)
    )


def wanted_of(body: CountTokens) -> Wanted:
    """Where this request names its memory, if it does."""
    return Wanted(body.memory, (body.metadata or {}).get("user_id"), body.metadata)


def turns_of(message: Message) -> Iterator[Turn]:
    """Results of tools come in a user's message here; they are turns of their own."""
    if isinstance(message.content, str):
        yield Turn(message.role, message.content)
        return
    thinking, parts, calls = "", list[str | Picture](), list[MadeCall]()
    for part in message.content:
        match part:
            case Text(text=text):
                parts.append(text)
            # The signature of a thought is another service's, and is not looked at.
            case ThinkingPart(thinking=thought):
                thinking += thought
            case RedactedThinking():
                raise BadRequest("A redacted_thinking block cannot be read here: it is encrypted; leave it out.")
            case ToolUse():
                calls.append(MadeCall(part.id, part.name, json.dumps(part.input, ensure_ascii=False)))
            case ToolResult():
                yield turn_of_parts("tool", result_parts(part), call_id=part.tool_use_id)
            case Image() | Document():
                parts.append(picture_of(part))
    if parts or calls or thinking:
        yield turn_of_parts(message.role, parts, thinking=thinking or None, calls=tuple(calls))


def result_parts(result: ToolResult) -> list[str | Picture]:
    """A tool's result as texts and pictures; a failed one says so in its first words."""
    parts: list[str | Picture] = ["Error: "] if result.is_error else []
    if result.content is None or isinstance(result.content, str):
        return [*parts, result.content or ""]
    return [*parts, *(part.text if isinstance(part, Text) else picture_of(part) for part in result.content)]


def picture_of(part: Image | Document) -> Picture:
    """The picture of an image block; BadRequest for documents and for sources that are not read here."""
    if isinstance(part, Document):
        raise BadRequest("Documents are not read here; leave document blocks out, or send their text.")
    match part.source:
        case {"type": "base64", "media_type": str(media_type), "data": str(data)}:
            return Picture(f"data:{media_type};base64,{data}")
        case {"type": "url", "url": str(url)}:
            return Picture(url)
    raise BadRequest("An image block's source is neither {type: base64, media_type, data} nor {type: url, url}.")


# to the answer


@dataclass(frozen=True)
class PendingAnswer:
    """A checked request, from which every part of its answer is made."""

    body: Messages
    chat: Chat
    applied: list[dict[str, Any]]  # edits of the context
    memory: Remembering
    recording: TurnRecording

    @property
    def id(self) -> str:
        """The message's id."""
        return f"msg_{self.chat.op.request_id.removeprefix('gen-')}"

    @property
    def prompt_only(self) -> bool:
        """Whether the prompt is to be read, so that its prefix is cached, and nothing to be said."""
        return self.body.max_tokens == 0

    @property
    def management(self) -> dict[str, Any]:
        """What was done to the context, for who asked that it be managed."""
        return {"context_management": {"applied_edits": self.applied}} if self.body.context_management else {}

    def visible_result(self, result: SampleResult) -> SampleResult:
        """The result as the client may see it: without the token that was drawn for nobody."""
        return prompt_only(result) if self.prompt_only else result

    def message(
        self, content: list[dict[str, Any]], result: SampleResult | None, stop: dict[str, Any]
    ) -> dict[str, Any]:
        """The answer as an object; without a result it is the empty message that opens a stream."""
        n_drawn = n_ids(result.sequences[0].tokens) if result else 0
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.body.model,
            "content": content,
            **stop,
            **self.management,
            "usage": self.usage(n_drawn, result.cache_hit_tokens if result else 0),
            **self.recording.told,
        }

    def usage(self, n_drawn: int, n_cached: int) -> dict[str, int]:
        """Anthropic counts cached tokens apart from the others."""
        return {
            "input_tokens": length_of(self.chat.op.prompt) - n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": n_cached,
            "output_tokens": n_drawn,
        }

    async def kept(self, stop: dict[str, Any]) -> dict[str, Any]:
        """Of a prompt that was only read nothing is remembered."""
        return {} if self.prompt_only else await self.memory.keep(warning=stop.get("warning"))

    async def whole(self, results: Sequence[SampleResult]) -> dict[str, Any]:
        """The whole answer, with its blocks and why it ended."""
        result = self.visible_result(results[0])
        sequence, reply = result.sequences[0], self.chat.reply()
        blocks, heard = read_blocks(reply, sequence, self.chat.warning)
        self.recording.keep(0, sequence, heard)
        stop = stop_of(sequence, reply, blocks)
        return self.message([content_of(block) for block in blocks.done], result, stop | await self.kept(stop))


def stop_of(sequence: SampledSequence, reply: Reply, blocks: Blocks) -> dict[str, Any]:
    """Why the sample ended, in Anthropic's words, with the stop string that was found and a warning of broken calls."""
    # A stop string counts before the length: the text may end with it at the very last token.
    found = reply.detokenizer.trimmer.found
    if found is not None:
        reason = "stop_sequence"
    elif sequence.stop_reason == "length":
        reason = "max_tokens"
    else:
        reason = "tool_use" if blocks.ends_in_calls else "end_turn"
    stop = {"stop_reason": reason, "stop_sequence": found}
    return stop | ({"warning": blocks.warning} if blocks.warning else {})


def content_of(block: Block) -> dict[str, Any]:
    """A block as a content block; a call's arguments as far as they can be read."""
    match block.kind:
        case "text":
            return {"type": "text", "text": block.text}
        case "thinking":
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        case "call":
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": whole_part(block.text)}


def event_of(event: BlockEvent, blocks: Blocks) -> bytes:
    """The event that Anthropic's stream has for one event of a block."""
    match event:
        case Opened(index, block):
            # A call opens with an empty object: Anthropic's clients append the pieces of its JSON themselves.
            content = content_of(Block(block.kind, "{}" if block.kind == "call" else "", block.call_id, block.name))
            return typed_event("content_block_start", index=index, content_block=content)
        case Grown(index, text):
            kind, field = {
                "text": ("text_delta", "text"),
                "thinking": ("thinking_delta", "thinking"),
                "call": ("input_json_delta", "partial_json"),
            }[blocks.done[index].kind]
            return typed_event("content_block_delta", index=index, delta={"type": kind, field: text})
        case Closed(index):
            return typed_event("content_block_stop", index=index)


def typed_event(kind: str, **fields: Any) -> bytes:
    """An event whose data repeats its name as the type, as all of Anthropic's do."""
    return named_event(kind, {"type": kind, **fields})


async def events(served: Services, pending: PendingAnswer) -> AsyncIterator[bytes]:
    """The events of a stream, from the empty message to its stop; a failure ends it with an error event."""
    reply, blocks = pending.chat.reply(), Blocks(note=pending.chat.warning)

    def event_bytes(found: Sequence[BlockEvent]) -> bytes:
        return b"".join(event_of(event, blocks) for event in found)

    yield typed_event("message_start", message=pending.message([], None, {"stop_reason": None, "stop_sequence": None}))
    async for _, item in followed(served, [pending.chat.op]):
        if isinstance(item, Failure):
            pending.recording.fail()
            kind = "invalid_request_error" if item.category == "user" else "api_error"
            yield typed_event("error", error={"type": kind, "message": item.message})
        elif isinstance(item, Token):
            if pending.prompt_only:
                continue
            pieces = reply.push(item.token)
            pending.recording.shown(0, item, pieces)
            if event := event_bytes(blocks.add(pieces)):
                yield event
        else:
            item, pieces = pending.visible_result(item), reply.flush()
            pending.recording.ended(0, item.sequences[0], pieces)
            yield event_bytes([*blocks.add(pieces), *blocks.end()])
            # Anthropic's last delta carries the usage of the whole answer.
            n_drawn = n_ids(item.sequences[0].tokens)
            delta = stop_of(item.sequences[0], reply, blocks)
            usage = pending.usage(n_drawn, item.cache_hit_tokens)
            memory = await pending.kept(delta)
            delta |= {"warning": memory.pop("warning")} if "warning" in memory else {}
            yield typed_event("message_delta", delta=delta, usage=usage, **pending.management, **memory)
            yield typed_event("message_stop")


ROUTES = [
    Route("/messages", messages, methods=["POST"]),
    Route("/messages/count_tokens", count_tokens, methods=["POST"]),
]

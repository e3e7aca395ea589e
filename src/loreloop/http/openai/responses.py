"""OpenAI's responses: input items to a chat, a reply's blocks to output items and events.

Not of OpenAI: `warning` where a tool call was broken or cut off.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import answer, read_as_sent
from loreloop.http.generation.answering import answered
from loreloop.http.generation.chat import Chat, ChatRequest, chat_with_images, left_open, prompt_length, with_pictures
from loreloop.http.generation.marks import marks_of
from loreloop.http.generation.memory_named import Wanted
from loreloop.http.generation.recording import TurnRecording
from loreloop.http.generation.remembered import Remembering, recalled_request, remembering
from loreloop.http.generation.reply_blocks import Block, BlockEvent, Blocks, Closed, Grown, Opened, read_blocks
from loreloop.http.generation.requests import find_model, followed
from loreloop.http.openai import kept_responses
from loreloop.http.openai.kept_responses import Recalled, keep, recalled
from loreloop.http.services import Services, asker, now, services
from loreloop.http.sse import named_event
from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.link import Token
from loreloop.protocol.openai_rest import Effort
from loreloop.protocol.responses_rest import (
    CreateResponse,
    InputImage,
    Item,
    NamedFunction,
    ObjectFormat,
    Part,
    ReasoningPart,
    RefusalText,
    SchemaFormat,
)
from loreloop.protocol.rest import WireSamplingParams
from loreloop.protocol.sampling import SampleResult
from loreloop.protocol.token_ids import n_ids
from loreloop.protocol.training import Failure, length_of
from loreloop.store.deleted import Begun
from loreloop.text.conversation import Conversation, MadeCall, Picture, Turn, turn_of_parts
from loreloop.text.replies import WholeReply
from loreloop.text.tools.tool_calls import Tool


async def responses(request: Request) -> Response:
    """OpenAI's route for responses: the answer whole or as a stream of events, and kept unless the request says
    otherwise."""
    key = asker(request)
    body = await read_as_sent(request, CreateResponse)
    marks = marks_of(request, body.episode_id, body.metadata)
    model = await find_model(request, body.model, body.user, marks)
    found = await recalled(services(request), key.id, body)
    memory = await remembering(request, model, chat_request_of(body, found.items), wanted_of(body))
    chat = await chat_with_images(services(request).pictures, model, memory.chat_request)
    recording = TurnRecording(services(request).recorder, model, marks)
    pending = PendingAnswer(body=body, chat=chat, created=int(now()), found=found, memory=memory, recording=recording)
    recording.begin(chat, memory.chat_request.conversation, pending.id)
    stream = events(services(request), pending) if body.stream else None
    return await answered(request, model, [chat.op], partial(pending.whole, services(request)), stream, recording)


async def count_input(request: Request) -> Response:
    """How many tokens the prompt of such a request has."""
    key = asker(request)
    body = await read_as_sent(request, CreateResponse)
    model = await find_model(request, body.model, body.user)
    chat_request = chat_request_of(body, (await recalled(services(request), key.id, body)).items)
    chat_request = await recalled_request(request, model, chat_request, wanted_of(body))
    with_images = await with_pictures(services(request).pictures, model, chat_request)
    n_tokens = await prompt_length(model, with_images.conversation)
    return answer({"object": "response.input_tokens", "input_tokens": n_tokens})


# from the body


def chat_request_of(body: CreateResponse, items: Sequence[Item]) -> ChatRequest:
    """`items` are the input with what it refers to; instructions are those of this request alone."""
    # Instructions of earlier answers do not carry over, as with OpenAI.
    turns = [Turn("system", body.instructions)] if body.instructions else []
    turns += merged(turns_of(items))
    tools = tuple(
        Tool(tool.name, tool.description or "", tool.parameters or {"type": "object"}, bool(tool.strict))
        for tool in body.tools or ()
    )
    settings, effort = dict[str, Any](), effort_of(body)
    if effort is not None:
        settings |= {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    wanted = body.tool_choice or "auto"
    choice = f"={wanted.name}" if isinstance(wanted, NamedFunction) else wanted
    return ChatRequest(
        conversation=Conversation(tuple(turns), tools, settings),
        wire=params_of(body),
        choice=choice,
        parallel=body.parallel_tool_calls is not False,
        stream=bool(body.stream),
        left_open=left_open(body),
        strict=body.text is not None and isinstance(body.text.format, SchemaFormat) and bool(body.text.format.strict),
    )


def wanted_of(body: CreateResponse) -> Wanted:
    """The memory that the body asks for, by its field or its metadata."""
    return Wanted(body.memory, body.user, body.metadata, other_past=bool(body.previous_response_id))


def effort_of(body: CreateResponse) -> Effort | None:
    """The effort that a request wants spent on reasoning; None where it says nothing."""
    return body.reasoning.effort if body.reasoning else None


def params_of(body: CreateResponse) -> WireSamplingParams:
    """The request's sampling parameters as the protocol's, with the text format as a schema."""
    given = {
        name: value for name in ("temperature", "top_p", "top_k", "seed") if (value := getattr(body, name)) is not None
    }
    wire, form = WireSamplingParams(max_tokens=body.max_output_tokens, **given), body.text.format if body.text else None
    if isinstance(form, ObjectFormat):
        return msgspec.structs.replace(wire, json_schema={"type": "object"})
    return msgspec.structs.replace(wire, json_schema=form.schema_) if isinstance(form, SchemaFormat) else wire


def turns_of(items: Sequence[Item]) -> Iterator[Turn]:
    """The items as turns, one each. BadRequest where an item lacks a field or cannot be read here."""
    for item in items:
        match item.type:
            case "message":
                if item.role is None:
                    raise BadRequest("An input item of type 'message' must have a role.")
                yield turn_of_parts("system" if item.role == "developer" else item.role, parts_of(item.content))
            case "function_call":
                if item.name is None or item.call_id is None:
                    raise BadRequest("An input item of type 'function_call' must have name and call_id.")
                yield Turn("assistant", calls=(MadeCall(item.call_id, item.name, item.arguments or "{}"),))
            case "function_call_output":
                if item.call_id is None:
                    raise BadRequest("An input item of type 'function_call_output' must have call_id.")
                yield turn_of_parts("tool", parts_of(item.output), call_id=item.call_id)
            case "item_reference":
                raise BadRequest("An item_reference stands where nothing can be referred to.")
            case "reasoning":
                content = turn_of_parts("assistant", parts_of(item.content)).content
                thought = content or "".join(summary.text for summary in item.summary or ())
                # Encrypted thoughts are another service's; with a summary beside them that is used instead.
                if item.encrypted_content and not thought:
                    raise BadRequest("A reasoning item with encrypted_content alone cannot be read here; leave it out.")
                yield Turn("assistant", thinking=thought)


def merged(turns: Iterator[Turn]) -> Iterator[Turn]:
    """What an assistant thought, said and called in one go comes as several items; templates want one message."""
    for is_assistant, run in itertools.groupby(turns, lambda turn: turn.role == "assistant"):
        if not is_assistant:
            yield from run
            continue
        parts = list(run)
        content = "".join(part.content for part in parts)
        thinking = "".join(part.thinking or "" for part in parts) or None
        yield Turn(
            role="assistant",
            content=content,
            thinking=thinking,
            calls=tuple(call for part in parts for call in part.calls),
        )


def parts_of(content: str | Sequence[Part | ReasoningPart] | None) -> list[str | Picture]:
    """The content of an item as texts and pictures."""
    return [content or ""] if content is None or isinstance(content, str) else [part_of(part) for part in content]


def part_of(part: Part | ReasoningPart) -> str | Picture:
    """A part of an item's content: its text, or a picture. BadRequest for a picture by a file's id."""
    if isinstance(part, InputImage):
        if part.image_url is None:
            raise BadRequest("An input_image names no image_url; files are not kept here, send a data: URL.")
        return Picture(part.image_url)
    return part.refusal if isinstance(part, RefusalText) else part.text


# to the answer


@dataclass(frozen=True)
class PendingAnswer:
    """A checked request, from which every part of its answer is made; `created` is in seconds since the epoch."""

    body: CreateResponse
    chat: Chat
    created: int
    found: Recalled
    memory: Remembering
    recording: TurnRecording

    @property
    def number(self) -> str:
        """The digits that the ids of this answer and of its items share."""
        return self.chat.op.request_id.removeprefix("gen-")

    @property
    def id(self) -> str:
        """The answer's id."""
        return f"resp_{self.number}"

    def response(self, blocks: Blocks, result: SampleResult | None, error: Failure | None = None) -> dict[str, Any]:
        """The answer as an object: in progress without a result, failed with an error, else as the result ended."""
        body, cut = self.body, result is not None and was_cut(result)
        status = "failed" if error else "in_progress" if result is None else "incomplete" if cut else "completed"
        # OpenAI's answers repeat most of the request, and its clients' types require those fields.
        echoed = msgspec.to_builtins(body)
        kept = ("instructions", "metadata", "temperature", "top_p", "max_output_tokens", "user")
        return {name: echoed[name] for name in kept} | {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": error_of(error) if error else None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": body.model,
            "output": [self.item(index, block, done=True) for index, block in enumerate(blocks.done)],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": effort_of(body), "summary": None},
            "text": {"format": {"type": "text"}} | {k: v for k, v in (echoed["text"] or {}).items() if v is not None},
            "tools": echoed["tools"] or [],
            "tool_choice": echoed["tool_choice"] or "auto",
            "truncation": "disabled",
            "store": body.store is not False,
            "usage": self.usage(blocks, result) if result else None,
            **({"warning": blocks.warning} if blocks.warning else {}),
            **self.recording.told,
        }

    async def whole(self, served: Services, results: Sequence[SampleResult]) -> dict[str, Any]:
        """The whole answer of a finished sample, kept where that is wanted."""
        (result,) = results
        blocks, heard = whole_blocks(self.chat, result)
        self.recording.keep(0, result.sequences[0], heard)
        return await self.kept(served, blocks, result)

    async def kept(self, served: Services, blocks: Blocks, result: SampleResult) -> dict[str, Any]:
        """The whole answer, which can be referred to from now on if its `store` is true."""
        response = self.response(blocks, result) | await self.memory.keep(warning=blocks.warning)
        begun = Begun(Person(self.chat.op.owner, self.body.user or ""), self.recording.created)
        return response | {"store": await keep(served, begun, self.body, self.found, response)}

    def usage(self, blocks: Blocks, result: SampleResult) -> dict[str, Any]:
        """Tokens of the prompt and of the answer; thoughts are counted again from their text, as part of the answer."""
        n_prompt, n_drawn = length_of(self.chat.op.prompt), n_ids(result.sequences[0].tokens)
        thought = "".join(block.text for block in blocks.done if block.kind == "thinking")
        # The sample's tokens are not marked as thoughts or text, so the thought's text is counted anew.
        n_thought = len(self.chat.model.text.tokenizer.encode(thought)) if thought else 0
        return {
            "input_tokens": n_prompt,
            "input_tokens_details": {"cached_tokens": result.cache_hit_tokens},
            "output_tokens": n_drawn,
            "output_tokens_details": {"reasoning_tokens": n_thought},
            "total_tokens": n_prompt + n_drawn,
        }

    def item(self, index: int, block: Block, *, done: bool) -> dict[str, Any]:
        """A block as an output item; one that is not done yet is shown empty, since its content comes by events."""
        status = "in_progress" if not done else "incomplete" if block.cut else "completed"
        # Clients tell items apart by the beginning of their id.
        item_id = f"{ {'thinking': 'rs', 'text': 'msg', 'call': 'fc'}[block.kind] }_{self.number}_{index}"
        match block.kind:
            case "thinking":
                content = [{"type": "reasoning_text", "text": block.text}] if done else []
                return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": status}
            case "text":
                content = [text_part(block.text)] if done else []
                return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}
            case "call":
                call = {"call_id": block.call_id, "name": block.name, "arguments": block.text if done else ""}
                return {"id": item_id, "type": "function_call", "status": status} | call


def whole_blocks(chat: Chat, result: SampleResult) -> tuple[Blocks, WholeReply]:
    """The blocks of a finished sample, and the reply that they are the blocks of."""
    blocks, heard = read_blocks(chat.reply(), result.sequences[0], chat.warning)
    blocks.end(cut=was_cut(result))
    return blocks, heard


def error_of(failure: Failure) -> dict[str, str]:
    """In the codes that OpenAI has for it."""
    return {"code": "invalid_prompt" if failure.category == "user" else "server_error", "message": failure.message}


def was_cut(result: SampleResult) -> bool:
    """Whether the sample ended at its length and not by itself."""
    return result.sequences[0].stop_reason == "length"


def text_part(text: str) -> dict[str, Any]:
    """A text as a part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


@dataclass
class EventSequence:
    """Numbers the events of one stream."""

    pending: PendingAnswer
    blocks: Blocks = field(default_factory=Blocks)
    n_events: int = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        """One event with the next number of this stream."""
        self.n_events += 1
        return named_event(kind, {"type": kind, "sequence_number": self.n_events - 1} | fields)

    def about(self, event: BlockEvent) -> bytes:
        """The events that OpenAI's stream has for one event of a block, as one piece of bytes."""
        index = event.index
        block = self.blocks.done[index]
        item = self.pending.item(index, block, done=isinstance(event, Closed))
        place: dict[str, Any] = {"item_id": item["id"], "output_index": index}
        inside = place | {"content_index": 0}
        match event, block.kind:
            case Opened(), kind:
                # A message has parts inside, so it opens twice: the item, then its part.
                opened = self.event("response.output_item.added", output_index=index, item=item)
                if kind == "text":
                    opened += self.event("response.content_part.added", **inside, part=text_part(""))
                return opened
            case Grown(text=text), "text":
                return self.event("response.output_text.delta", **inside, delta=text, logprobs=[])
            case Grown(text=text), "thinking":
                return self.event("response.reasoning_text.delta", **inside, delta=text)
            case Grown(text=text), _:
                return self.event("response.function_call_arguments.delta", **place, delta=text)
            case _, "text":
                closed = self.event("response.output_text.done", **inside, text=block.text, logprobs=[])
                closed += self.event("response.content_part.done", **inside, part=text_part(block.text))
            case _, "thinking":
                closed = self.event("response.reasoning_text.done", **inside, text=block.text)
            case _:
                done = {"arguments": block.text, "name": block.name}
                closed = self.event("response.function_call_arguments.done", **place, **done)
        return closed + self.event("response.output_item.done", output_index=index, item=item)

    def all(self, found: Sequence[BlockEvent]) -> bytes:
        """The events for several events of blocks, in their order."""
        return b"".join(self.about(event) for event in found)


async def events(served: Services, pending: PendingAnswer) -> AsyncIterator[bytes]:
    """The events of a stream, from the empty response to its end, which is completed, incomplete or failed."""
    reply, stream = pending.chat.reply(), EventSequence(pending, Blocks(note=pending.chat.warning))
    blocks = stream.blocks
    yield stream.event("response.created", response=pending.response(blocks, None))
    yield stream.event("response.in_progress", response=pending.response(blocks, None))
    async for _, item in followed(served, [pending.chat.op]):
        if isinstance(item, Failure):
            pending.recording.fail()
            yield stream.event("response.failed", response=pending.response(blocks, None, item))
        elif isinstance(item, Token):
            pieces = reply.push(item.token)
            pending.recording.shown(0, item, pieces)
            if event_bytes := stream.all(blocks.add(pieces)):
                yield event_bytes
        else:
            pieces = reply.flush()
            pending.recording.ended(0, item.sequences[0], pieces)
            yield stream.all([*blocks.add(pieces), *blocks.end(cut=was_cut(item))])
            whole = await pending.kept(served, blocks, item)
            yield stream.event(f"response.{whole['status']}", response=whole)


ROUTES = [
    Route("/responses", responses, methods=["POST"]),
    Route("/responses/input_tokens", count_input, methods=["POST"]),
    *kept_responses.ROUTES,
]

"""A chat request as all dialects reduce to it: from a conversation to operations, from tokens to pieces of a reply.

Knows no dialect's bodies, and not how a model's family writes tool calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from loreloop.http.generation.requests import Model, Report, encoded, most_tokens, operation
from loreloop.http.pictures import Pictures
from loreloop.protocol.checks import check_tokens, too_long
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.openai_rest import MAX_TOOLS
from loreloop.protocol.rest import WireSamplingParams
from loreloop.protocol.sampling import SampledSequence, SampleOp, Thoughts
from loreloop.protocol.training import Chunk, length_of
from loreloop.text.answers import closed
from loreloop.text.conversation import Conversation, prompt_text
from loreloop.text.grammars.sandbox import WantedSchema
from loreloop.text.replies import Reply, ReplyRules, WholeReply, read_whole, rules_of
from loreloop.text.templates.generation_defaults import DEFAULTED
from loreloop.text.tools.tool_calls import Tool
from loreloop.text.tools.tool_formats import ToolFormat, token_term

MAX_TOOL_BYTES = 512 << 10  # of all descriptions and schemas together


@dataclass(frozen=True)
class ChatRequest:
    """`choice` is auto, none, required, or `=NAME` for one tool; `wire` may hold a grammar for the content, whose
    schema is held exactly or refused where it is `strict`. For the parameters that are `left_open` the model's own
    defaults hold."""

    conversation: Conversation
    wire: WireSamplingParams
    choice: str = "auto"
    parallel: bool = True
    n: int = 1
    stream: bool = False
    report: Report = field(default_factory=Report)
    left_open: frozenset[str] = frozenset()
    strict: bool = False
    collected: WholeReply | None = None  # gets all that the reply gives, beside whoever tells it


def left_open(body: object) -> frozenset[str]:
    """Those of the parameters for which models have defaults that a request's body does not give."""
    return frozenset(name for name in DEFAULTED if getattr(body, name, None) is None)


@dataclass(frozen=True)
class Chat:
    """A checked request on its model."""

    model: Model
    op: SampleOp
    rules: ReplyRules
    warning: str | None = None  # of what the request asked for and cannot be held
    collected: WholeReply | None = None

    def reply(self) -> Reply:
        """A reader for one sample of this request; each sample needs its own."""
        return self.rules.begin(self.collected)


async def chat_on(model: Model, chat_request: ChatRequest) -> Chat:
    """BadRequest where template, tools or parameters do not fit together."""
    conversation = (
        replace(chat_request.conversation, tools=()) if chat_request.choice == "none" else chat_request.conversation
    )
    prompt = bounded_prompt(model, conversation)
    rules = rules_of(model.text.tokenizer, model.text.template, conversation, prompt)
    constrained = await held_schemas(model, chat_request)
    # What the request says goes before the model's own defaults, and these before the protocol's.
    own = {name: value for name, value in model.defaults.items() if name in chat_request.left_open}
    wire = msgspec.structs.replace(constrained.wire, **own)
    grammar = _call_grammar(model, rules.form, chat_request, constrained)
    if grammar:
        wire = msgspec.structs.replace(wire, grammar=grammar, json_schema=None)
    if rules.opened and _is_constrained(wire):
        # A grammar leaves no room for thoughts.
        prompt, rules = closed(prompt), replace(rules, opened=False)
    chunks = await prompt_chunks(model, prompt, conversation)
    op = await operation(model, chunks, wire, chat_request.n, chat_request.report, stream=chat_request.stream)
    rules = replace(
        rules,
        stop_tokens=op.params.stop_tokens,
        stop_strings=_strings(chat_request.wire.stop),
        at_once=bool(grammar),
    )
    return Chat(
        model=model,
        op=with_thoughts(op, rules.thoughts),
        rules=rules,
        warning=constrained.warning,
        collected=chat_request.collected,
    )


async def with_pictures(pictures: Pictures, model: Model, chat_request: ChatRequest) -> ChatRequest:
    """The request with its pictures looked at."""
    return replace(chat_request, conversation=await pictures.in_conversation(chat_request.conversation, model.info))


async def chat_with_images(pictures: Pictures, model: Model, chat_request: ChatRequest) -> Chat:
    """The checked request, after its pictures were looked at. BadRequest where something does not fit together."""
    return await chat_on(model, await with_pictures(pictures, model, chat_request))


def bounded_prompt(model: Model, conversation: Conversation) -> str:
    """The text of the prompt; what can be none of this model is refused before a template goes through it."""
    n_tools, n_bytes = len(conversation.tools), len(msgspec.json.encode([t.as_function() for t in conversation.tools]))
    if n_tools > MAX_TOOLS or n_bytes > MAX_TOOL_BYTES:
        raise BadRequest(
            f"The request brings {n_tools} tools of {n_bytes} bytes; at most {MAX_TOOLS} of {MAX_TOOL_BYTES} together."
        )
    n_characters = sum(
        len(turn.content) + len(turn.thinking or "") + sum(len(call.arguments) for call in turn.calls)
        for turn in conversation.turns
    )
    most = most_tokens(model.info)
    # No token is longer than the vocabulary's longest, so this many characters cannot fit, and no template need be
    # rendered to know it.
    if n_characters > most * model.text.tokenizer.longest:
        raise too_long(f"over {most}", 1, model.info)
    return prompt_text(model.text.template, conversation)


async def prompt_chunks(model: Model, prompt: str, conversation: Conversation) -> tuple[Chunk, ...]:
    """The prompt in tokens, each image in the place of the token that the template wrote for it."""
    ids, rules = (await encoded(model, prompt, special=False)).ids, model.info.images
    # The template wrote one placeholder for each picture, in the order of the conversation.
    images = [p.chunk for turn in conversation.turns for p in turn.pictures if p.chunk is not None]
    places = [index for index, token in enumerate(ids) if rules is not None and token == rules.placeholder]
    # A placeholder that a user has typed would shift all images behind it by one.
    if len(places) != len(images):
        raise BadRequest(
            f"The prompt has {len(places)} places for {len(images)} images: either the model's chat template does not "
            "show them, or a text holds the template's own mark for an image; leave that out."
        )
    chunks: list[Chunk] = []
    start = 0
    for place, image in zip(places, images, strict=True):
        chunks += [check_tokens(ids[start:place], model.info)] if place > start else []
        chunks.append(image)
        start = place + 1
    if start < len(ids) or not chunks:
        chunks.append(check_tokens(ids[start:], model.info))
    return tuple(chunks)


async def prompt_length(model: Model, conversation: Conversation) -> int:
    """Tokens of the prompt that a conversation, its pictures looked at, makes."""
    return length_of(await prompt_chunks(model, bounded_prompt(model, conversation), conversation))


def with_thoughts(op: SampleOp, thoughts: Thoughts) -> SampleOp:
    """The operation with what is known of thoughts in its answer, by which stop strings inside a thought are told
    apart."""
    return msgspec.structs.replace(op, params=msgspec.structs.replace(op.params, thoughts=thoughts))


def _is_constrained(wire: WireSamplingParams) -> bool:
    return any(rule is not None for rule in (wire.grammar, wire.json_schema, wire.regex))


def _strings(stop: object) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,)
    return tuple(item for item in stop if isinstance(item, str)) if isinstance(stop, tuple) else ()


@dataclass(frozen=True)
class Constrained:
    """What a grammar will hold: `calls` of these tools, if any are to be by one, and the schema in `wire`."""

    calls: tuple[Tool, ...] | None
    wire: WireSamplingParams
    warning: str | None


async def held_schemas(model: Model, chat_request: ChatRequest) -> Constrained:
    """Schemas as far as they can be held; BadRequest names what a strict one has that cannot."""
    # A forced call comes instead of a formatted answer, so the schema of the response format does not bind it.
    calls, forced = _constrained_tools(chat_request), chat_request.choice not in ("auto", "none")
    schema = None if forced else chat_request.wire.json_schema
    wanted = [WantedSchema("the response format", schema, chat_request.strict)] if schema is not None else []
    wanted += [WantedSchema(f"the tool {tool.name!r}", tool.parameters, tool.strict) for tool in calls or ()]
    found = await model.sandbox.held(tuple(wanted))
    schemas = list(found.schemas)
    # The schemas come back in the order in which they were handed in: the response format's first, if there is one.
    wire = (
        chat_request.wire if schema is None else msgspec.structs.replace(chat_request.wire, json_schema=schemas.pop(0))
    )
    if calls is not None:
        calls = tuple(replace(tool, parameters=one) for tool, one in zip(calls, schemas, strict=True))
    left_out = ", ".join(found.left_out)
    return Constrained(calls, wire, f"Left out of what the answer must satisfy: {left_out}." if left_out else None)


def _constrained_tools(chat_request: ChatRequest) -> tuple[Tool, ...] | None:
    """The tools that a grammar is about: forced or strict ones, or all beside a response format; else None."""
    tools = chat_request.conversation.tools
    forced = chat_request.choice not in ("auto", "none")
    if forced and not tools:
        raise BadRequest(f"tool_choice is {chat_request.choice.lstrip('=')!r}, but the request brings no tools.")
    if chat_request.choice.startswith("="):
        tools = tuple(tool for tool in tools if tool.name == chat_request.choice[1:])
        if not tools:
            raise BadRequest(f"tool_choice names {chat_request.choice[1:]!r}, which is none of the request's tools.")
    schema = chat_request.wire.json_schema
    chosen = chat_request.choice == "auto" and tools and (schema is not None or any(tool.strict for tool in tools))
    return tools if forced or chosen else None


def _call_grammar(model: Model, form: ToolFormat, chat_request: ChatRequest, constrained: Constrained) -> str | None:
    """The grammar of forced or strict calls, or of calls beside a response format; None where the model may write what
    it likes. A forced call leaves no room for a formatted answer, which comes after its result."""
    if constrained.calls is None:
        return None
    forced = chat_request.choice not in ("auto", "none")
    # A grammar of the caller's own and one for calls would both have to hold for every token.
    if chat_request.wire.grammar is not None or chat_request.wire.regex is not None:
        raise BadRequest("A grammar or regex and forced or strict tools exclude each other; send one.")
    # A tool that was named is called once; the others may be called together where the request allows it.
    added, once = model.text.tokenizer.added, chat_request.choice.startswith("=")
    return form.grammar(
        constrained.calls,
        at_least_one=forced,
        parallel=chat_request.parallel and not once,
        special=partial(token_term, added),
        answer=None if forced else constrained.wire.json_schema,
    )


def whole_reply(chat: Chat, tokens: Sequence[int]) -> WholeReply:
    """The reply of a finished sample, from its token ids."""
    return read_whole(chat.reply(), tokens, chat.warning)


def finish_of(sequence: SampledSequence, *, makes_calls: bool) -> str:
    """Why a sample ended, in OpenAI's words: calls that are whole count before a plain stop."""
    return "tool_calls" if makes_calls and sequence.stop_reason == "stop" else sequence.stop_reason

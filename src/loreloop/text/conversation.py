"""A conversation as all API dialects reduce to it, and as a model's own template reads it.

A template that knows no tools is told of them in its system text, and sees calls and results as text, but where it
writes those by itself. Knows neither JSON bodies nor tokens.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import Any

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import ImageChunk
from loreloop.text.answers import THINK
from loreloop.text.templates.chat_template import MAX_SECONDS, ChatTemplate, Message
from loreloop.text.tools.json_scan import strict_json
from loreloop.text.tools.tool_calls import Call, Tool
from loreloop.text.tools.tool_formats import MISTRAL, MISTRAL_LIST, ToolFormat, format_of, knows_tools

RESERVED = {"self", "messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}


@dataclass(frozen=True)
class MadeCall:
    """An earlier call as its caller hands it back; `arguments` is JSON text."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Picture:
    """An image as its caller named it (a `data:` URL or an address), and, once it has been looked at, its bytes.
    `caption` is what its caller says that it shows, for when the image itself is not sent any more."""

    url: str
    chunk: ImageChunk | None = None
    caption: str = ""


@dataclass(frozen=True)
class Turn:
    """`role` is system, user, assistant or tool; a tool's turn answers `call_id`.

    Where there are pictures, `parts` are the content in order; `content` is its text alone.
    """

    role: str
    content: str = ""
    thinking: str | None = None
    calls: tuple[MadeCall, ...] = ()
    call_id: str | None = None
    name: str | None = None
    parts: tuple[str | Picture, ...] = ()

    @property
    def pictures(self) -> list[Picture]:
        """The turn's pictures in the order in which they stand."""
        return [part for part in self.parts if isinstance(part, Picture)]


def turn_of_parts(role: str, parts: Sequence[str | Picture], **about: Any) -> Turn:
    """A turn of texts and pictures; texts alone are joined."""
    content = "".join(part for part in parts if isinstance(part, str))
    return Turn(role, content, parts=tuple(parts) if any(isinstance(p, Picture) for p in parts) else (), **about)


@dataclass(frozen=True)
class Conversation:
    """`settings` go to the template as they are; `begun` is how the answer begins, word for word, behind `thought`."""

    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    begun: str = ""
    thought: str = ""


def prompt_text(template: ChatTemplate, conversation: Conversation) -> str:
    """The text that the model goes on from. BadRequest where its template does not accept the conversation."""
    text = _rendered(template, conversation, add_generation_prompt=True)
    thinks = THINK[0] in (template_of(template, conversation).source or "")
    return text + _thought(conversation, text, thinks=thinks) + conversation.begun


def told_text(template: ChatTemplate, conversation: Conversation) -> str:
    """The text of a conversation that has ended, as the template tells it. BadRequest as for `prompt_text`."""
    return _rendered(template, conversation, add_generation_prompt=False)


def _rendered(template: ChatTemplate, conversation: Conversation, *, add_generation_prompt: bool) -> str:
    if taken := RESERVED & set(conversation.settings):
        raise BadRequest(
            f"chat_template_kwargs holds {sorted(taken)[0]!r}, which the request itself decides; leave it out."
        )
    template = template_of(template, conversation)
    source = template.source or ""
    reads_tools = knows_tools(source)
    tools = [tool.as_function() for tool in conversation.tools] if reads_tools else []
    has_calls = any(turn.calls or turn.role == "tool" for turn in conversation.turns)
    habits = habits_of(template) if has_calls else Habits()
    turns = conversation.turns if reads_tools else _instructed(conversation, format_of(source))
    messages = (
        _messages(turns, source, habits) if reads_tools or habits.writes_calls else _plain_messages(turns, source)
    )
    settings = {"add_generation_prompt": add_generation_prompt, **conversation.settings}
    return template.render(messages, tools=tools or None, **settings)


def template_of(template: ChatTemplate, conversation: Conversation) -> ChatTemplate:
    """A model may have a template of its own for conversations with tools."""
    return template.with_tools if conversation.tools else template


@dataclass(frozen=True)
class Habits:
    """How a template takes earlier calls and results, which is found by showing it some: it may write calls though it
    never reads tools, and its text does not tell what it does with an argument."""

    writes_calls: bool = False
    names_results: bool = False  # a result says whose it is
    as_text: bool = False  # arguments are JSON text, for it joins them with other texts
    empty: str | None = ""  # the content of a message that holds nothing but calls


@lru_cache(maxsize=64)
def habits_of(template: ChatTemplate) -> Habits:
    """What a template does with calls and results, found by rendering a small conversation in each way until one
    comes out whole. Without any, a template that writes no calls is assumed."""
    call = MadeCall("trialcall", "look_up", '{"word": "argument"}')
    turns = (Turn("user", "question"), Turn("assistant", calls=(call,)), Turn("tool", "outcome", call_id=call.call_id))
    started = time.monotonic()
    # The plainest way comes first, so that a template that takes several ways gets the usual one.
    for names_results, as_text, empty in product((False, True), (False, True), ("", None)):
        habits = Habits(True, names_results, as_text, empty)
        try:
            text = template.render(_messages(turns, template.source or "", habits))
        except BadRequest:
            text = ""
        misread = "{'word'" in text or '\\"word' in text  # Python in place of JSON, or JSON in JSON
        if "argument" in text and "outcome" in text and not misread:
            return habits
        if time.monotonic() - started > MAX_SECONDS:
            break  # made to hurt: once is enough
    return Habits()


def _thought(conversation: Conversation, prompt: str, *, thinks: bool) -> str:
    """What stands between a prompt and an answer that has begun, where the model thinks: its thought, ended."""
    text, whole = prompt.rstrip(), f"{conversation.thought}\n{THINK[1]}\n\n"
    if text.endswith(THINK[0]):
        line = "" if prompt.endswith("\n") else "\n"
        return line + whole if conversation.begun or conversation.thought else ""
    is_closed = text.endswith(THINK[1])  # by a thought that is empty
    return f"{THINK[0]}\n{whole}" if conversation.thought and thinks and not is_closed else ""


def _wants_parts(source: str) -> bool:
    """Whether a template reads contents as lists of texts and images only."""
    return ("'image'" in source or '"image"' in source) and "is string" not in source


def _messages(turns: Sequence[Turn], source: str, habits: Habits) -> list[Message]:
    form, as_parts = format_of(source), _wants_parts(source)
    messages = [_message(turn, form, as_parts=as_parts, as_text=habits.as_text) for turn in turns]
    function_names = {call.call_id: call.name for turn in turns for call in turn.calls}
    for turn, message in zip(turns, messages, strict=True):
        if habits.empty is None and turn.calls and not (turn.content or turn.parts):
            message["content"] = None
        if habits.names_results and turn.call_id in function_names:
            message.setdefault("name", function_names[turn.call_id])
    return messages


def _message(turn: Turn, form: ToolFormat, *, as_parts: bool, as_text: bool) -> Message:
    message: Message = {"role": turn.role, "content": _content(turn, as_parts=as_parts)}
    if turn.thinking is not None:
        message["reasoning_content"] = turn.thinking
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": _call_id(call.call_id, form),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments if as_text else _object(call.arguments)},
            }
            for call in turn.calls
        ]
    if turn.call_id is not None:
        message["tool_call_id"] = _call_id(turn.call_id, form)
    if turn.name is not None:
        message["name"] = turn.name
    return message


def _content(turn: Turn, *, before: str = "", after: str = "", as_parts: bool) -> str | list[dict[str, str]]:
    """What a turn says, with something around it: a text, or a list of parts where there are pictures."""
    if not turn.parts and not as_parts:
        return before + turn.content + after
    parts = [*([before] if before else []), *(turn.parts or (turn.content,)), *([after] if after else [])]
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]


def _call_id(call_id: str, form: ToolFormat) -> str:
    """Mistral's templates take ids of nine letters and digits only."""
    # A hash, so that a call and its result are given the same short id without anything being kept between requests.
    if form not in (MISTRAL, MISTRAL_LIST) or (len(call_id) == 9 and call_id.isalnum()):
        return call_id
    return hashlib.sha256(call_id.encode(errors="surrogatepass")).hexdigest()[:9]


def _object(arguments: str) -> object:
    try:
        return strict_json(arguments)
    except ValueError:
        return arguments


def _instructed(conversation: Conversation, form: ToolFormat) -> tuple[Turn, ...]:
    """The turns, the system's telling of the tools."""
    if not conversation.tools:
        return conversation.turns
    instructions, turns = form.instructions(conversation.tools), conversation.turns
    # Many templates accept one system message only, so the instructions join the one that is there.
    if turns and turns[0].role == "system":
        first, appendix = turns[0], f"\n\n{instructions}"
        parts = (*first.parts, appendix) if first.parts else ()
        return (replace(first, content=first.content + appendix, parts=parts), *turns[1:])
    return (Turn("system", instructions), *turns)


def _plain_messages(turns: Sequence[Turn], source: str) -> list[Message]:
    form, as_parts = format_of(source), _wants_parts(source)
    return [_plain(turn, form, as_parts=as_parts) for turn in turns]


def _plain(turn: Turn, form: ToolFormat, *, as_parts: bool) -> Message:
    if turn.role == "tool":
        around = {"before": "<tool_response>\n", "after": "\n</tool_response>"}
        return {"role": "user", "content": _content(turn, **around, as_parts=as_parts)}
    calls = form.written([Call(call.name, call.arguments) for call in turn.calls]) if turn.calls else ""
    gap = "\n" if calls and (turn.content or turn.parts) else ""
    return {"role": turn.role, "content": _content(turn, after=gap + calls, as_parts=as_parts)}

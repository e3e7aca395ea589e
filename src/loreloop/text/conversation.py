"""A conversation as all API dialects reduce to it, and as a model's own template reads it.

A template that knows no tools is told of them in its system text, and sees calls and results as text. Knows neither
JSON bodies nor tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import ImageChunk
from loreloop.text.chat import ChatTemplate, Message
from loreloop.text.json_scan import strict_json
from loreloop.text.tool_calls import Call, Tool
from loreloop.text.tool_formats import MISTRAL, MISTRAL_LIST, ToolFormat, format_of, knows_tools
from loreloop.text.tool_reader import THINK

RESERVED = {"self", "messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}


@dataclass(frozen=True)
class MadeCall:
    """An earlier call as its caller hands it back; `arguments` is JSON text."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Picture:
    """An image as its caller named it (a `data:` URL or an address), and, once it has been looked at, its bytes."""

    url: str
    chunk: ImageChunk | None = None


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
    if taken := RESERVED & set(conversation.settings):
        raise BadRequest(
            f"chat_template_kwargs holds {sorted(taken)[0]!r}, which the request itself decides; leave it out."
        )
    source = template.source or ""
    form, as_parts = format_of(source), _wants_parts(source)
    if knows_tools(source):
        tools: list[dict[str, Any]] | None = [tool.as_function() for tool in conversation.tools] or None
        messages = [_message(turn, form, as_parts=as_parts) for turn in conversation.turns]
    else:
        tools, messages = None, [_plain(turn, form, as_parts=as_parts) for turn in _instructed(conversation, form)]
    text = template.render(messages, tools=tools, **conversation.settings)
    return text + _thought(conversation, text, thinks=THINK[0] in source) + conversation.begun


def _thought(conversation: Conversation, prompt: str, *, thinks: bool) -> str:
    """What stands between a prompt and an answer that has begun, where the model thinks: its thought, ended."""
    text, whole = prompt.rstrip(), f"{conversation.thought}\n{THINK[1]}\n\n"
    if text.endswith(THINK[0]):
        line = "" if prompt.endswith("\n") else "\n"
        return line + whole if conversation.begun or conversation.thought else ""
    told_not_to = text.endswith(THINK[1])  # by a thought that is empty
    return f"{THINK[0]}\n{whole}" if conversation.thought and thinks and not told_not_to else ""


def _wants_parts(source: str) -> bool:
    """Whether a template reads contents as lists of texts and images only."""
    return ("'image'" in source or '"image"' in source) and "is string" not in source


def _message(turn: Turn, form: ToolFormat, *, as_parts: bool) -> Message:
    """As published templates read it: arguments as an object, but where the family joins them as text."""
    as_text = form.shape == "deepseek"
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
    if turns and turns[0].role == "system":
        first, told = turns[0], f"\n\n{instructions}"
        parts = (*first.parts, told) if first.parts else ()
        return (replace(first, content=first.content + told, parts=parts), *turns[1:])
    return (Turn("system", instructions), *turns)


def _plain(turn: Turn, form: ToolFormat, *, as_parts: bool) -> Message:
    if turn.role == "tool":
        around = {"before": "<tool_response>\n", "after": "\n</tool_response>"}
        return {"role": "user", "content": _content(turn, **around, as_parts=as_parts)}
    calls = form.written([Call(call.name, call.arguments) for call in turn.calls]) if turn.calls else ""
    gap = "\n" if calls and (turn.content or turn.parts) else ""
    return {"role": turn.role, "content": _content(turn, after=gap + calls, as_parts=as_parts)}

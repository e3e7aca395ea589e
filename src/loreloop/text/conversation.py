"""A conversation as all API dialects reduce to it, and as a model's own template reads it.

A template that knows no tools is told of them in its system text, and sees calls and results as text. Knows neither
JSON bodies nor tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loreloop.protocol.errors import BadRequest
from loreloop.text.chat import ChatTemplate, Message
from loreloop.text.tool_calls import Call, Tool
from loreloop.text.tool_formats import ToolFormat, format_of, knows_tools

RESERVED = {"self", "messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}


@dataclass(frozen=True)
class MadeCall:
    """An earlier call as its caller hands it back; `arguments` is JSON text."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Turn:
    """`role` is system, user, assistant or tool; a tool's turn answers `call_id`."""

    role: str
    content: str = ""
    thinking: str | None = None
    calls: tuple[MadeCall, ...] = ()
    call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Conversation:
    """`settings` go to the template as they are."""

    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def prompt_text(template: ChatTemplate, conversation: Conversation) -> str:
    """The text that the model goes on from. BadRequest where its template does not accept the conversation."""
    if taken := RESERVED & set(conversation.settings):
        raise BadRequest(
            f"chat_template_kwargs holds {sorted(taken)[0]!r}, which the request itself decides; leave it out."
        )
    form = format_of(template.source)
    if knows_tools(template.source):
        tools: list[dict[str, Any]] | None = [tool.as_function() for tool in conversation.tools] or None
        messages = [_message(turn, as_text=form.shape == "deepseek") for turn in conversation.turns]
    else:
        tools, messages = None, [_plain(turn, form) for turn in _instructed(conversation, form)]
    return template.render(messages, tools=tools, **conversation.settings)


def _message(turn: Turn, *, as_text: bool) -> Message:
    """As published templates read it: arguments as an object, but where the family joins them as text."""
    message: Message = {"role": turn.role, "content": turn.content}
    if turn.thinking is not None:
        message["reasoning_content"] = turn.thinking
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments if as_text else _object(call.arguments)},
            }
            for call in turn.calls
        ]
    if turn.call_id is not None:
        message["tool_call_id"] = turn.call_id
    if turn.name is not None:
        message["name"] = turn.name
    return message


def _object(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _instructed(conversation: Conversation, form: ToolFormat) -> tuple[Turn, ...]:
    """The turns, the system's telling of the tools."""
    if not conversation.tools:
        return conversation.turns
    instructions, turns = form.instructions(conversation.tools), conversation.turns
    if turns and turns[0].role == "system":
        return (replace(turns[0], content=f"{turns[0].content}\n\n{instructions}"), *turns[1:])
    return (Turn("system", instructions), *turns)


def _plain(turn: Turn, form: ToolFormat) -> Message:
    if turn.role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{turn.content}\n</tool_response>"}
    content = turn.content
    if turn.calls:
        calls = form.written([Call(call.name, call.arguments) for call in turn.calls])
        content = f"{content}\n{calls}" if content else calls
    return {"role": turn.role, "content": content}

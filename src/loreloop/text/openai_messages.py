"""OpenAI's chat messages and tools as turns of a conversation, for requests that bring them and for files of examples;
and turns as messages, for what is kept.

Knows neither routes nor files; the bodies are those of `protocol/openai_rest.py`.
"""

from __future__ import annotations

from typing import Any

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.openai_rest import ChatMessage, ImagePart, RefusalPart, TextPart, ToolBody
from loreloop.text.conversation import MadeCall, Picture, Turn, turn_of_parts
from loreloop.text.tools.tool_calls import Tool


def turn_of(message: ChatMessage) -> Turn:
    """One message as a turn of a conversation; BadRequest where a tool's message names no call."""
    calls = tuple(
        MadeCall(call.id, call.function.name, call.function.arguments or "{}") for call in message.tool_calls or ()
    )
    if message.role == "tool" and message.tool_call_id is None:
        raise BadRequest("A message of role 'tool' must say in tool_call_id which call it answers.")
    # Templates know no developer; the role is OpenAI's newer name for system.
    role = "system" if message.role == "developer" else message.role
    thinking = message.reasoning_content or message.reasoning
    parts = [message.content or ""] if not isinstance(message.content, tuple) else map(part_of, message.content)
    call_id, name = message.tool_call_id, message.name
    return turn_of_parts(role, list(parts), thinking=thinking, calls=calls, call_id=call_id, name=name)


def message_of_turn(turn: Turn) -> dict[str, Any]:
    """A turn as a message; `turn_of` makes the same turn of it again."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.parts:
        message["content"] = [_part(part) for part in turn.parts]
    if turn.thinking is not None:
        message["reasoning_content"] = turn.thinking
    if turn.calls:
        message["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.calls
        ]
    if turn.call_id is not None:
        message["tool_call_id"] = turn.call_id
    if turn.name is not None:
        message["name"] = turn.name
    return message


def _part(part: str | Picture) -> dict[str, Any]:
    if isinstance(part, Picture):
        return {"type": "image_url", "image_url": {"url": part.url}}
    return {"type": "text", "text": part}


def part_of(part: TextPart | RefusalPart | ImagePart) -> str | Picture:
    """A part of a message's content: its text, or a picture."""
    if isinstance(part, ImagePart):
        return Picture(part.image_url.url)
    return part.text if isinstance(part, TextPart) else part.refusal


def tool_of(tool: ToolBody) -> Tool:
    """A function of the body as a tool; one without parameters takes an object without properties."""
    function = tool.function
    parameters = function.parameters or {"type": "object", "properties": {}}
    return Tool(function.name, function.description or "", parameters, bool(function.strict))

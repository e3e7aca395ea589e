"""Messages of OpenAI's chat format as turns of a memory, and a streamed answer put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loreloop.memory.turns import ROLES, Turn
from loreloop.protocol.errors import BadRequest

Message = Mapping[str, Any]
CaptionOf = Callable[[str], str]  # of an image's URL; "" where there is none

INSTRUCTIONS = ("system", "developer")


def turn_of(message: Message, caption_of: CaptionOf) -> Turn:
    """Raises BadRequest for what is no message. Tool calls become words, since later turns speak of what they did."""
    role = message.get("role")
    if role not in ROLES and role != "developer":
        raise BadRequest(f"A message's role is one of {', '.join(ROLES)}; {role!r} is not.")
    pieces = [text_of_content(message.get("content"), caption_of)]
    pieces += [words_of_call(call) for call in message.get("tool_calls") or ()]
    # A developer's message is what newer models call a system message.
    return Turn("system" if role in INSTRUCTIONS else str(role), "\n".join(piece for piece in pieces if piece))


def text_of_content(content: object, caption_of: CaptionOf) -> str:
    """An image becomes its caption or a marker: what it showed is not kept."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise BadRequest(f"A message's content is a string or a list of parts; this is {type(content).__name__}.")
    return "\n".join(text_of_part(part, caption_of) for part in content)


def text_of_part(part: object, caption_of: CaptionOf) -> str:
    """A text as it is, and a marker for an image, a sound or a file. Raises BadRequest for any other part."""
    match part:
        case {"type": "text", "text": str(text)} | {"type": "refusal", "refusal": str(text)}:
            return text
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            caption = caption_of(url)
            return f"[image: {caption}]" if caption else "[image]"
        case {"type": "input_audio"}:
            return "[audio]"
        case {"type": "file"}:
            return "[file]"
    raise BadRequest("A part of a message's content is none that a memory knows: text, image_url, input_audio or file.")


def words_of_call(call: object) -> str:
    """A tool call in words. Raises BadRequest for one without a function's name and arguments."""
    match call:
        case {"function": {"name": str(name), "arguments": str(arguments)}}:
            return f"calls {name} {arguments}"
    raise BadRequest("A tool call has no function with a name and arguments.")


class StreamedAnswer:
    """What has come of a streamed answer."""

    def __init__(self) -> None:
        self.content = ""
        self.calls: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Any) -> None:
        """`chunk` has the attributes of the `openai` package's ChatCompletionChunk."""
        for choice in chunk.choices:
            self.content += getattr(choice.delta, "content", None) or ""
            for piece in getattr(choice.delta, "tool_calls", None) or ():
                # A call comes in pieces by its number: first its id and name, then its arguments bit by bit.
                empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
                call = self.calls.setdefault(piece.index, empty)
                call["id"] = getattr(piece, "id", None) or call["id"]
                function = getattr(piece, "function", None)
                for field in ("name", "arguments"):
                    call["function"][field] += getattr(function, field, None) or ""

    def message(self) -> Message:
        """The answer so far, with its tool calls in the order of their numbers."""
        calls = [call for _, call in sorted(self.calls.items())]
        return answer_of(self.content, calls)


def answer_of(content: str | None, calls: Sequence[Message]) -> Message:
    """The message that a client sends back when it goes on behind an answer."""
    answer = {"role": "assistant", "content": content or ""}
    # Some servers refuse an empty list of tool calls, so the field is left out.
    return {**answer, "tool_calls": list(calls)} if calls else answer


def answer_in(response: Any) -> Message:
    """`response` has the attributes of the `openai` package's ChatCompletion."""
    message = response.choices[0].message
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.function.name, "arguments": call.function.arguments},
        }
        for call in getattr(message, "tool_calls", None) or ()
    ]
    return answer_of(getattr(message, "content", None), calls)

"""Files to learn from, one JSON object a line: chats, preferences, marked answers and tasks, as OpenAI and TRL do it.

A reader takes lines and gives the examples of `examples.py`; what cannot be used is refused with line and field. The
same readers are used at upload and where a run begins. Knows no tokens and no server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loreloop.learn.examples import Demonstration, Mark, Preference, Task, Told
from loreloop.learn.file_lines import BadLine, Wrong, converted, examples_of, quoted
from loreloop.learn.picture_urls import trouble_with
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.openai_rest import MAX_TOOLS, MAX_TURNS, ChatMessage, ImagePart, Strict, ToolBody
from loreloop.text.conversation import Conversation
from loreloop.text.openai_messages import tool_of, turn_of
from loreloop.text.tools.json_scan import strict_json


class FileMessage(ChatMessage, frozen=True, kw_only=True):
    """`weight` is how much an answer counts: 0 for one that is only read."""

    weight: Annotated[float, Meta(ge=0, le=1)] | None = None


Messages = Annotated[tuple[FileMessage, ...], Meta(min_length=1, max_length=MAX_TURNS)]
Tools = Annotated[tuple[ToolBody, ...], Meta(max_length=MAX_TOOLS)]


class Talk(Strict, frozen=True, kw_only=True):
    """A conversation of a file. Not of OpenAI: `chat_template_kwargs`, which go to the model's template as they are."""

    messages: Messages
    tools: Tools | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ComparedLine(Strict, frozen=True, kw_only=True):
    """OpenAI's line of a preference."""

    input: Talk
    preferred_output: Messages
    non_preferred_output: Messages


class TrlPreference(Strict, frozen=True, kw_only=True):
    """TRL's line of a preference; where the prompt is left out, it is what both conversations begin with."""

    chosen: str | Messages
    rejected: str | Messages
    prompt: str | Messages | None = None
    tools: Tools | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TrlMark(Strict, frozen=True, kw_only=True):
    """TRL's line of an answer that was wanted or not."""

    prompt: str | Messages
    completion: str | Messages
    label: bool
    tools: Tools | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ToldLine(Strict, frozen=True, kw_only=True):
    """Our own line of an answer and what came after it."""

    prompt: str | Messages
    completion: str | Messages
    outcome: Annotated[str, Meta(min_length=1)]
    tools: Tools | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def demonstrations(lines: Iterable[bytes | str]) -> Iterator[Demonstration]:
    """Conversations of OpenAI's chat files, `{"messages": […], "tools": […]}`. BadLine as all readers here."""
    return examples_of(lines, _demonstration)


def preferences(lines: Iterable[bytes | str]) -> Iterator[Preference]:
    """Pairs, as OpenAI writes them (`input`, `preferred_output`, `non_preferred_output`) or TRL (`prompt`, `chosen`,
    `rejected`, as texts or messages)."""
    return examples_of(lines, _preference)


def marks(lines: Iterable[bytes | str]) -> Iterator[Mark]:
    """Answers with a mark, as TRL writes them: `prompt`, `completion`, `label`."""
    return examples_of(lines, _mark)


def told(lines: Iterable[bytes | str]) -> Iterator[Told]:
    """Answers with what came after them: `prompt`, `completion`, `outcome`."""
    return examples_of(lines, _told)


def tasks(lines: Iterable[bytes | str]) -> Iterator[Task]:
    """Conversations to go on from, with whatever else their lines hold for graders."""
    return examples_of(lines, _task)


def tasks_with(item: type[msgspec.Struct], lines: Iterable[bytes | str]) -> Iterator[Task]:
    """Tasks whose lines hold what an environment reads, beside whatever else they hold."""

    def read(line: Any) -> Task:
        task = _task(line)
        own = {name: value for name, value in task.item.items() if name in item.__struct_fields__}
        converted(own, item)
        return task

    return examples_of(lines, read)


def read_file(file: Path, read: Callable[[Iterable[bytes | str]], Iterator[Any]]) -> list[Any]:
    """All examples of a file. BadRequest that names the file where it cannot be read or holds none, else BadLine."""
    try:
        with file.open("rb") as lines:
            found = list(read(lines))
    except OSError as error:
        raise BadRequest(f"{file} cannot be read: {error.strerror}.") from None
    if not found:
        raise BadRequest(f"{file} holds no examples; it needs one JSON object a line.")
    return found


def has_pictures(*conversations: Conversation) -> bool:
    """Whether any of them shows an image, which a model of text cannot learn from."""
    return any(turn.pictures for conversation in conversations for turn in conversation.turns)


def _demonstration(line: Any) -> Demonstration:
    talk = converted(line, Talk)
    _check(talk.messages, "messages", parallel=talk.parallel_tool_calls is not False)
    conversation = _conversation(talk)
    weights = tuple(1.0 if message.weight is None else message.weight for message in talk.messages)
    if not any(turn.role == "assistant" and weight for turn, weight in zip(conversation.turns, weights, strict=True)):
        raise Wrong("messages", "hold no answer of the assistant with a weight above 0, so nothing is learned from it.")
    return Demonstration(conversation, weights)


def _preference(line: Any) -> Preference:
    if isinstance(line, dict) and not line.keys().isdisjoint(("input", "preferred_output", "non_preferred_output")):
        return _compared(converted(line, ComparedLine))
    found = converted(line, TrlPreference)
    chosen, rejected = _messages(found.chosen, "assistant"), _messages(found.rejected, "assistant")
    if found.prompt is None:
        if chosen == rejected:
            raise Wrong("rejected", "is the same as `chosen`, so that neither is to be preferred.")
        n = _n_shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
        if not prompt or not chosen or not rejected:
            raise Wrong("prompt", "is missing, and `chosen` and `rejected` do not begin with the same messages.")
    else:
        prompt = _messages(found.prompt, "user")
    asked = _asked(Talk(messages=prompt, tools=found.tools, chat_template_kwargs=found.chat_template_kwargs), "prompt")
    return Preference(asked, _answer(chosen, "chosen"), _answer(rejected, "rejected"))


def _compared(line: ComparedLine) -> Preference:
    chosen = _answer(line.preferred_output, "preferred_output")
    return Preference(
        _asked(line.input, "input.messages"), chosen, _answer(line.non_preferred_output, "non_preferred_output")
    )


def _mark(line: Any) -> Mark:
    found = converted(line, TrlMark)
    prompt = _messages(found.prompt, "user")
    asked = _asked(Talk(messages=prompt, tools=found.tools, chat_template_kwargs=found.chat_template_kwargs), "prompt")
    return Mark(asked, _answer(_messages(found.completion, "assistant"), "completion"), found.label)


def _told(line: Any) -> Told:
    found = converted(line, ToldLine)
    prompt = _messages(found.prompt, "user")
    asked = _asked(Talk(messages=prompt, tools=found.tools, chat_template_kwargs=found.chat_template_kwargs), "prompt")
    return Told(asked, _answer(_messages(found.completion, "assistant"), "completion"), found.outcome)


def _task(line: Any) -> Task:
    if not isinstance(line, dict):
        raise Wrong("", f"holds {quoted(line)}; a JSON object belongs there.")
    # All but the conversation is the graders' own, of any form.
    own = {name: value for name, value in line.items() if name in Talk.__struct_fields__}
    talk = converted(own, Talk)
    if talk.messages[-1].role == "assistant":
        raise Wrong(
            f"messages[{len(talk.messages) - 1}].role", 'is "assistant"; the last message must wait for an answer.'
        )
    return Task(_asked(talk, "messages"), line)


def _messages(texts: str | Sequence[FileMessage], role: Any) -> tuple[FileMessage, ...]:
    """TRL writes a conversation's end as a text as well."""
    return (FileMessage(role=role, content=texts),) if isinstance(texts, str) else tuple(texts)


def _n_shared(left: Sequence[FileMessage], right: Sequence[FileMessage]) -> int:
    """With how many equal messages both begin."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(left), len(right)))


def _asked(talk: Talk, field: str) -> Conversation:
    _check(talk.messages, field, parallel=talk.parallel_tool_calls is not False)
    return _conversation(talk)


def _answer(messages: Sequence[FileMessage], field: str) -> Conversation:
    _check(messages, field, parallel=True)
    if messages[-1].role != "assistant":
        raise Wrong(
            f"{field}[{len(messages) - 1}].role", f"is {quoted(messages[-1].role)}; the last must be assistant."
        )
    return Conversation(tuple(turn_of(message) for message in messages))


def _conversation(talk: Talk) -> Conversation:
    tools = tuple(tool_of(tool) for tool in talk.tools or ())
    return Conversation(tuple(turn_of(message) for message in talk.messages), tools, talk.chat_template_kwargs or {})


def _check(messages: Sequence[FileMessage], field: str, *, parallel: bool) -> None:
    """What a struct's types do not say of messages."""
    called: set[str] = set()
    for number, message in enumerate(messages):
        place = f"{field}[{number}]"
        if message.role == "tool" and message.tool_call_id is None:
            raise Wrong(f"{place}.tool_call_id", "is missing; a tool's message says which call it answers.")
        if message.role != "assistant" and message.weight is not None:
            raise Wrong(f"{place}.weight", f"is given for the role {message.role}; only the assistant's answers count.")
        if message.role == "assistant" and not (message.content or message.tool_calls or message.refusal):
            raise Wrong(f"{place}.content", "is empty, and there are no tool_calls: the answer says nothing.")
        if not parallel and len(message.tool_calls or ()) > 1:
            raise Wrong(f"{place}.tool_calls", "are several, where parallel_tool_calls is false.")
        _check_calls(message, place)
        _check_pictures(message, place)
        called |= {call.id for call in message.tool_calls or ()}
        if field == "messages" and message.tool_call_id is not None and message.tool_call_id not in called:
            raise Wrong(f"{place}.tool_call_id", f"is {quoted(message.tool_call_id)}, which no call before it has.")


def _check_calls(message: FileMessage, place: str) -> None:
    for number, call in enumerate(message.tool_calls or ()):
        try:
            arguments = strict_json(call.function.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            shown = quoted(call.function.arguments)
            raise Wrong(
                f"{place}.tool_calls[{number}].function.arguments",
                f"is {shown}; the text of a JSON object belongs there.",
            )


def _check_pictures(message: FileMessage, place: str) -> None:
    for number, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
        url = part.image_url.url if isinstance(part, ImagePart) else None
        trouble = trouble_with(url) if url is not None else None
        if trouble is not None:
            raise Wrong(f"{place}.content[{number}].image_url.url", f"is {quoted(url)}; {trouble}")


READERS: Mapping[str, Callable[[Iterable[bytes | str]], Iterator[Any]]] = {
    "sft": demonstrations,
    "dpo": preferences,
    "kto": marks,
    "reinforcement": tasks,
    "hindsight": told,
}
__all__ = ["READERS", "BadLine", "demonstrations", "has_pictures", "marks", "preferences", "read_file", "tasks", "told"]

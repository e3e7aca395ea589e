"""Bodies of OpenAI's responses API as far as they are served.

A field that is neither here nor in `hints.py` is refused by name, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loreloop.protocol.openai_rest import MAX_TOOLS, MAX_TURNS, Effort, MaxTokens, MemoryField, Strict, TopP


class InputText(Strict, frozen=True, tag="input_text"):
    """A piece of text in what the user or the system says."""

    text: str


class OutputText(Strict, frozen=True, tag="output_text"):
    """A piece of text of an earlier answer, handed back."""

    text: str


class RefusalText(Strict, frozen=True, tag="refusal"):
    """A piece of an earlier answer in which a model declined, handed back; it is read as text."""

    refusal: str


class InputImage(Strict, frozen=True, tag="input_image"):
    """An image by its `data:` URL or address; a `file_id` is refused, since no files are kept here."""

    image_url: str | None = None
    file_id: str | None = None


Part = InputText | OutputText | RefusalText | InputImage


class ReasoningPart(Strict, frozen=True, tag="reasoning_text"):
    """What an earlier answer thought, handed back."""

    text: str


class SummaryText(Strict, frozen=True):
    """A thought's summary, handed back in place of the thought."""

    text: str
    type: Literal["summary_text"] = "summary_text"


class Item(Strict, frozen=True):
    """An input item of any kind; which fields it needs depends on `type`."""

    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"] = "message"
    id: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | tuple[InputText | OutputText | RefusalText | InputImage | ReasoningPart, ...] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | tuple[Part, ...] | None = None
    summary: tuple[SummaryText, ...] | None = None
    encrypted_content: str | None = None


class FunctionTool(Strict, frozen=True):
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    type: Literal["function"] = "function"
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Strict, frozen=True):
    """The form of `tool_choice` that forces a call of one function."""

    name: str
    type: Literal["function"] = "function"


class PlainFormat(Strict, frozen=True, tag="text"):
    """The answer may be any text, which is the default."""


class ObjectFormat(Strict, frozen=True, tag="json_object"):
    """The answer must be a JSON object, of whatever shape."""


class SchemaFormat(Strict, frozen=True, tag="json_schema"):
    """The answer must be JSON that satisfies a schema, called `schema` in JSON."""

    name: str = "answer"
    schema_: dict[str, Any] = msgspec.field(default_factory=dict, name="schema")
    description: str | None = None
    strict: bool | None = None


class TextSettings(Strict, frozen=True):
    """The form of the answer's text."""

    format: PlainFormat | ObjectFormat | SchemaFormat | None = None


class Reasoning(Strict, frozen=True):
    """How much a model is to think before it answers."""

    effort: Effort | None = None


class ResponseStreamOptions(Strict, frozen=True):
    """Options of a stream, none of which changes anything here."""

    include_obfuscation: bool | None = None  # nothing is obscured either way


# What an answer here never holds, or (the first) holds without being asked, in the clear.
Included = Literal[
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "message.input_image.image_url",
]


class CreateResponse(Strict, frozen=True):
    """A field that is null counts as left out."""

    model: str
    input: str | Annotated[tuple[Item, ...], Meta(max_length=MAX_TURNS)]
    instructions: str | None = None
    tools: Annotated[tuple[FunctionTool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=1 << 31)] | None = None  # this and `seed` are not of OpenAI
    seed: int | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    include: tuple[Included, ...] | None = None  # accepted and without effect
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = None  # unless false, the answer can be referred to later
    metadata: dict[str, Any] | None = None
    user: str | None = None
    previous_response_id: str | None = None
    memory: MemoryField | None = None  # this and `episode_id` are not of OpenAI
    episode_id: str | None = None

"""Bodies of Anthropic's messages API as far as they are served.

A field that is neither here nor in `hints.py` is refused by name, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loreloop.protocol.openai_rest import MAX_TOOLS, MAX_TURNS, MemoryField, Strict, TopP


class Text(Strict, frozen=True, kw_only=True, tag="text"):
    """A block of text."""

    text: str


class Image(Strict, frozen=True, kw_only=True, tag="image"):
    """A block with an image; `source` says by its `type` whether it holds base64 or a URL."""

    source: dict[str, Any]


class Document(Strict, frozen=True, kw_only=True, tag="document"):
    """A block with a document; it is known so that it can be refused with advice."""

    source: dict[str, Any]
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | None = None


class ThinkingPart(Strict, frozen=True, kw_only=True, tag="thinking"):
    """What an earlier answer thought, handed back."""

    thinking: str


class RedactedThinking(Strict, frozen=True, kw_only=True, tag="redacted_thinking"):
    """A thought that its maker has encrypted; it is refused, since nothing in it can be read here."""

    data: str


class ToolUse(Strict, frozen=True, kw_only=True, tag="tool_use"):
    """A call in an earlier answer, handed back; `input` are its arguments."""

    id: str
    name: str
    input: dict[str, Any]


class ToolResult(Strict, frozen=True, kw_only=True, tag="tool_result"):
    """What a call gave, by the call's id; with `is_error` it failed."""

    tool_use_id: str
    content: str | tuple[Text | Image | Document, ...] | None = None
    is_error: bool | None = None


ContentBlock = Text | Image | Document | ThinkingPart | RedactedThinking | ToolUse | ToolResult


class Message(Strict, frozen=True):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | tuple[ContentBlock, ...]


class AnthropicTool(Strict, frozen=True, kw_only=True):
    """A function that the model may call; `input_schema` is the JSON schema of its arguments."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None


class Choice(Strict, frozen=True):
    """Whether tools may, must or must not be called; `name` goes with the type `tool` alone."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Strict, frozen=True):
    """Whether the model is to think before it answers."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]


class OutputFormat(Strict, frozen=True):
    """The JSON schema that an answer must satisfy, called `schema` in JSON."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = msgspec.field(default_factory=dict, name="schema")


class OutputConfig(Strict, frozen=True):
    """How much effort goes into an answer, and the form that the answer takes."""

    effort: str | None = None
    format: OutputFormat | None = None


class AllTurns(Strict, frozen=True, tag="all"):
    """Thoughts are kept in every turn."""


class ThinkingTurns(Strict, frozen=True, tag="thinking_turns"):
    """Thoughts are kept in the newest `value` turns that have any."""

    value: Annotated[int, Meta(ge=1)]


class InputTokens(Strict, frozen=True, tag="input_tokens"):
    """A number of the prompt's tokens, as a trigger or as a least amount."""

    value: Annotated[int, Meta(ge=0)]


class ToolUses(Strict, frozen=True, tag="tool_uses"):
    """A number of calls, as a trigger or as the newest ones that are kept."""

    value: Annotated[int, Meta(ge=0)]


class ClearThinking(Strict, frozen=True, tag="clear_thinking_20251015"):
    """Thoughts of all but the newest turns are left out."""

    keep: Literal["all"] | ThinkingTurns | AllTurns = ThinkingTurns(1)


class ClearToolUses(Strict, frozen=True, tag="clear_tool_uses_20250919"):
    """Results of all but the newest calls are left out, once there are so many calls or tokens."""

    trigger: InputTokens | ToolUses = InputTokens(100_000)
    keep: ToolUses = ToolUses(3)
    clear_at_least: InputTokens | None = None  # the edit is left out where it would save less than this
    exclude_tools: tuple[str, ...] | None = None  # names of tools whose results always stay
    clear_tool_inputs: bool | tuple[str, ...] | None = None


class Compact(Strict, frozen=True, tag="compact_20260112"):
    """Passes as long as its trigger is not reached."""

    trigger: InputTokens = InputTokens(150_000)
    instructions: str | None = None
    pause_after_compaction: bool | None = None


class ContextManagement(Strict, frozen=True):
    """Edits that shorten an earlier conversation before the model reads it, carried out in order."""

    edits: Annotated[tuple[ClearThinking | ClearToolUses | Compact, ...], Meta(max_length=16)] = ()


class CountTokens(Strict, frozen=True):
    """A field that is null counts as left out."""

    model: str
    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=MAX_TURNS)]
    system: str | tuple[Text, ...] | None = None
    tools: Annotated[tuple[AnthropicTool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None
    metadata: dict[str, Any] | None = None
    memory: MemoryField | None = None  # this and `episode_id` are not of Anthropic
    episode_id: str | None = None


class Messages(CountTokens, frozen=True, kw_only=True):
    """Asks for an answer to a conversation; all that `CountTokens` has, and how the answer is drawn."""

    max_tokens: Annotated[int, Meta(ge=0, lt=1 << 31)]  # 0: the prompt is read, and kept in the cache of prefixes
    stop_sequences: tuple[str, ...] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=1 << 31)] | None = None
    seed: int | None = None  # not of Anthropic

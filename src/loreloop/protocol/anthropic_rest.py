"""Bodies of Anthropic's messages API as far as they are served.

A field that is neither here nor in `hints.py` is refused by name, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loreloop.protocol.openai_rest import MAX_TOOLS, MAX_TURNS, MemoryField, Strict, TopP


class Text(Strict, frozen=True, kw_only=True, tag="text"):
    text: str


class Image(Strict, frozen=True, kw_only=True, tag="image"):
    source: dict[str, Any]


class Document(Strict, frozen=True, kw_only=True, tag="document"):
    source: dict[str, Any]
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | None = None


class ThinkingPart(Strict, frozen=True, kw_only=True, tag="thinking"):
    thinking: str


class RedactedThinking(Strict, frozen=True, kw_only=True, tag="redacted_thinking"):
    data: str


class ToolUse(Strict, frozen=True, kw_only=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class ToolResult(Strict, frozen=True, kw_only=True, tag="tool_result"):
    tool_use_id: str
    content: str | tuple[Text | Image | Document, ...] | None = None
    is_error: bool | None = None


ContentBlock = Text | Image | Document | ThinkingPart | RedactedThinking | ToolUse | ToolResult


class Message(Strict, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: str | tuple[ContentBlock, ...]


class AnthropicTool(Strict, frozen=True, kw_only=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None


class Choice(Strict, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Strict, frozen=True):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]


class OutputFormat(Strict, frozen=True):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = msgspec.field(default_factory=dict, name="schema")


class OutputConfig(Strict, frozen=True):
    effort: str | None = None
    format: OutputFormat | None = None


class AllTurns(Strict, frozen=True, tag="all"):
    pass


class ThinkingTurns(Strict, frozen=True, tag="thinking_turns"):
    value: Annotated[int, Meta(ge=1)]


class InputTokens(Strict, frozen=True, tag="input_tokens"):
    value: Annotated[int, Meta(ge=0)]


class ToolUses(Strict, frozen=True, tag="tool_uses"):
    value: Annotated[int, Meta(ge=0)]


class ClearThinking(Strict, frozen=True, tag="clear_thinking_20251015"):
    """Thoughts of all but the newest turns are left out."""

    keep: Literal["all"] | ThinkingTurns | AllTurns = ThinkingTurns(1)


class ClearToolUses(Strict, frozen=True, tag="clear_tool_uses_20250919"):
    """Results of all but the newest calls are left out, once there are so many calls or tokens."""

    trigger: InputTokens | ToolUses = InputTokens(100_000)
    keep: ToolUses = ToolUses(3)
    clear_at_least: InputTokens | None = None
    exclude_tools: tuple[str, ...] | None = None
    clear_tool_inputs: bool | tuple[str, ...] | None = None


class Compact(Strict, frozen=True, tag="compact_20260112"):
    """Passes as long as its trigger is not reached."""

    trigger: InputTokens = InputTokens(150_000)
    instructions: str | None = None
    pause_after_compaction: bool | None = None


class ContextManagement(Strict, frozen=True):
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
    memory: MemoryField | None = None  # not of Anthropic


class Messages(CountTokens, frozen=True, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=0, lt=1 << 31)]  # 0: the prompt is read, and kept in the cache of prefixes
    stop_sequences: tuple[str, ...] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=1 << 31)] | None = None
    seed: int | None = None  # not of Anthropic

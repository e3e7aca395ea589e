"""Bodies of OpenAI's API as far as they are served. A field that is not here is refused by name, never ignored."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False


class Common(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both routes take. `user` and `metadata` are the caller's own notes."""

    model: str
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=1 << 31)] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | tuple[str, ...] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


class Completion(Common, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`prompt` is a text or token ids."""

    prompt: str | tuple[Annotated[int, Meta(ge=0, lt=1 << 31)], ...]
    max_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    type: str = "text"


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str | tuple[TextPart, ...] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content or ())


class ChatCompletion(Common, frozen=True, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

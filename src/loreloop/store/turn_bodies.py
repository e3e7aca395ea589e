"""The content of a recorded turn as it is stored: one compressed piece, so that it is there whole or not at all."""

from __future__ import annotations

from typing import Any

import msgspec
import zstandard

from loreloop.protocol.episodes import ArmName, Message
from loreloop.protocol.token_ids import Logprobs, TokenIds

LEVEL = 3  # of zstandard, which makes a tenth of a conversation within a millisecond


class TurnBody(msgspec.Struct, frozen=True, kw_only=True):
    """What was said, and how it was sampled; as in `protocol.episodes.Turn`, with ids and log-probabilities packed."""

    messages: tuple[Message, ...]
    answer: Message
    tools: tuple[dict[str, Any], ...] = ()
    base_model: str
    prompt: TokenIds = TokenIds(b"")
    tokens: TokenIds = TokenIds(b"")
    logprobs: Logprobs = Logprobs(b"")
    temperature: float = 1.0
    finish_reason: str = "stop"
    latency_seconds: float = 0.0


class NewTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that is to be kept; `body` None is one that was dropped, of which only that is told."""

    id: str
    episode_id: str
    deployment: str
    key_id: str
    user: str
    created: float
    arm: ArmName
    version: int
    version_created: float  # with it, what tells a deployment from a later one of its name
    base_model: str
    revision: str | None
    consent: bool  # what holds, before what was said in its episode is looked at
    said_consent: bool | None = None  # what its request said itself
    side: bool
    unfinished: bool = False
    body: bytes | None


def packed(body: TurnBody) -> bytes:
    """The body as bytes."""
    return zstandard.ZstdCompressor(LEVEL).compress(msgspec.msgpack.encode(body))


def unpacked(data: bytes) -> TurnBody:
    """What `packed` was given."""
    return msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data), type=TurnBody)

"""What people bring to learn from: conversations, preferences, marks, and prompts with something to grade by.

Knows neither files nor tokens; conversations are those of `text/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loreloop.text.conversation import Conversation


@dataclass(frozen=True)
class Demonstration:
    """A conversation to imitate. `weights` has one number for each of its turns; only those of the assistant count."""

    conversation: Conversation
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Preference:
    """Two ways to go on from one conversation; both end with turns of the assistant."""

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True)
class Mark:
    """One answer to a conversation, and whether it was wanted."""

    prompt: Conversation
    answer: Conversation
    wanted: bool


@dataclass(frozen=True)
class Told:
    """One answer to a conversation, and what came after it, in words: a complaint, an error, a corrected answer."""

    prompt: Conversation
    answer: Conversation
    outcome: str


@dataclass(frozen=True)
class Task:
    """A conversation to go on from, with `item`: the fields of its line in a file, which graders read."""

    prompt: Conversation
    item: Mapping[str, Any] = field(default_factory=dict)

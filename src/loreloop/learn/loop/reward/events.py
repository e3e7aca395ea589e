"""What a streaming reward learns from and what it is asked, as plain frozen values; and what every such reward can do.

Knows no feedback as it comes in (`labels.py`), and no model in particular.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from loreloop.protocol.episodes import Message, Person
from loreloop.protocol.feedback import Source

HeldOut = Callable[[Sequence[Message]], bool]  # whether nothing may ever be trained on a prompt
NOBODY = ""  # the person of an event that is nobody's opinion: what code or a judge has said


class Scored(msgspec.Struct, frozen=True):
    """An answer's text, and the messages that it answers: what a reward gives a number to."""

    messages: tuple[Message, ...]
    answer: str


class LabelledEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that somebody has said of an answer, as a reward learns it.

    With `worse`, it is a preference: `item` is better than `worse`, and `value` is 1. Without, it is a mark: `value`,
    from 0 to 1, is how good `item` is. `weight` is how much the event counts beside others. `person` is whose voice it
    is, which the cap on persons counts, or NOBODY; `owners` are those whose turns it speaks of, as "KEY/USER". `number`
    is the place of the feedback in its feed.
    """

    id: str  # of the feedback
    number: int
    person: str
    created: float  # seconds since the epoch
    metric: str
    source: Source = "human"
    item: Scored
    worse: Scored | None = None
    value: float = 1.0
    weight: float = 1.0
    owners: tuple[str, ...] = ()

    def is_of(self, persons: Collection[str]) -> bool:
        """Whether one of these persons has said it, or owns an answer in it."""
        return self.person in persons or any(owner in persons for owner in self.owners)


class DataRange(msgspec.Struct, frozen=True, kw_only=True):
    """What a version has learned from, all in all: events and persons, and the first and the last event."""

    n_events: int = 0
    n_persons: int = 0
    first_number: int = 0
    last_number: int = 0
    first_created: float = 0.0
    last_created: float = 0.0


class RewardVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One state of a reward, as it is stored beside its weights.

    `mean` and `spread` are those of the raw rewards of the reference set: a score is (raw − mean) / spread, so that
    versions compare. With `slope` and `noise`, the chance that people say that the first of two answers is better is
    noise + (1 − 2·noise) · σ(slope · difference of the scores).
    `accuracy` and `loss` (in nats) are those of the newest events, each judged before it was learned from; None before
    there are enough. `note` says what happened besides, such as that a change of taste was found.
    """

    number: int
    kind: str  # linear or lora
    data: DataRange
    mean: float = 0.0
    spread: float = 1.0
    slope: float = 1.0
    noise: float = 0.0
    n_reference: int = 0
    accuracy: float | None = None
    loss: float | None = None
    weights: str | None = None  # where they are, if not beside this record: a path at a server
    note: str = ""


class RewardModel(Protocol):
    """A reward that learns from a stream. Calls block; they are made from one thread at a time."""

    @property
    def version(self) -> RewardVersion:
        """The state as it is now."""
        ...

    def update(self, events: Sequence[LabelledEvent]) -> RewardVersion:
        """Learns from new events, each of which is given once, in the order of their numbers."""
        ...

    def score(self, items: Sequence[Scored]) -> list[float]:
        """A number for each answer, in spreads of the reference set from its mean: 0 is an answer like those."""
        ...

    def save(self, folder: Path) -> None:
        """Keeps the state; whatever dies meanwhile, the folder holds this version whole or the one before."""
        ...

    def load(self, folder: Path) -> None:
        """Takes back the newest state that is whole; a folder without one leaves the model as it is."""
        ...


def range_with(data: DataRange, events: Sequence[LabelledEvent], n_persons: int) -> DataRange:
    """The range that also holds new events; `n_persons` are all that have said something so far."""
    if not events:
        return msgspec.structs.replace(data, n_persons=n_persons)
    numbers, times = [one.number for one in events], [one.created for one in events]
    before = data if data.n_events else None
    return DataRange(
        n_events=data.n_events + len(events),
        n_persons=n_persons,
        first_number=min(numbers if before is None else [before.first_number, *numbers]),
        last_number=max(data.last_number, *numbers) if before else max(numbers),
        first_created=min(times if before is None else [before.first_created, *times]),
        last_created=max(data.last_created, *times) if before else max(times),
    )


def nothing_held_out(messages: Sequence[Message]) -> bool:
    """The rule of a loop without a golden set."""
    return False


def prompt_key(messages: Sequence[Message]) -> str:
    """A short name for a prompt, alike for alike messages: 16 hex digits."""
    return _digest([_said(message) for message in messages])


def item_key(item: Scored) -> str:
    """A short name for an answer together with its prompt."""
    return _digest([prompt_key(item.messages), item.answer.strip()])


def owner_of(person: Person) -> str:
    """A person as events name whose turns they speak of."""
    return f"{person.key_id}/{person.user}"


def answer_of(message: Message) -> str:
    """What an assistant's message says: its text, and its calls of tools as lines."""
    calls = [call.get("function", {}) for call in message.get("tool_calls") or [] if isinstance(call, dict)]
    lines = [f"→ {call.get('name', '')}({call.get('arguments', '')})" for call in calls]
    return "\n".join([text for text in (text_of(message),) if text] + lines)


def text_of(message: Message) -> str:
    """The words of a chat message; those of its parts, where it has several."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _said(message: Message) -> dict[str, Any]:
    # Ids of calls, names of clients and the like differ between two tellings of the same prompt, and so does whether a
    # text stands by itself or as a part of its message.
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else []
    others = [part for part in parts if not (isinstance(part, dict) and isinstance(part.get("text"), str))]
    return {"role": message.get("role"), "content": text_of(message)} | ({"parts": others} if others else {})


def _digest(plain: object) -> str:
    return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()[:16]

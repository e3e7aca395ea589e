"""What a recording deployment keeps of its answers, as all rooms share it: turns, and what became of each.

An episode is one task of an agent, or one chat of a person: its turns share an id. A person is a key together with the
`user` that its requests name. This file knows neither where turns are kept nor what is learned from them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Message = dict[str, Any]  # a chat message as OpenAI's API writes it, tools and images included
Refused = Literal["side", "no_consent", "unfinished"]
Empty = Literal["dropped", "expired"]
Fate = Literal["trainable", "waiting", Refused, Empty, "mixed", "used"]
# What a fate says of learning, for every room that asks. Of `REFUSED` somebody has said no, or there never was a whole
# answer; `EMPTY` ones hold no words; on `UNLEARNABLE` ones no candidate is ever trained. What was said of one answer of
# a mixed episode is about that answer, whoever gave the others, so a reward may hear it.
REFUSED: tuple[Refused, ...] = ("no_consent", "side", "unfinished")
EMPTY: tuple[Empty, ...] = ("expired", "dropped")
UNLEARNABLE: tuple[Fate, ...] = (*REFUSED, "mixed", *EMPTY)
LEARNABLE: tuple[Fate, ...] = ("trainable", "waiting", "used")
Whereabouts = Literal["kept", "pending", "dropped", "expired", "unknown"]
ArmName = Literal["main", "canary", "person"]


class Person(msgspec.Struct, frozen=True):
    """Whoever talked: the key that asked, and the `user` of its request; "" where it named none."""

    key_id: str
    user: str


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of a deployment, with all that is needed to learn from it. `id` is that of the completion.

    `prompt` holds the token ids before the answer (empty where images stand among them), `tokens` those of the answer
    with a log-probability each, as they were sampled under `revision` (None: the bare base) at `temperature`. `arm`
    says which side of the deployment answered. `number` orders turns as they were kept: their place in the feed, where
    a turn whose marks are changed stands anew behind all others. Without consent a turn is told without its content.
    """

    number: int
    id: str
    episode_id: str
    deployment: str
    person: Person
    created: float  # seconds since the epoch
    messages: tuple[Message, ...]
    answer: Message
    tools: tuple[dict[str, Any], ...] = ()
    base_model: str
    revision: str | None = None
    version: int  # of the deployment
    arm: ArmName = "main"
    prompt: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    temperature: float = 1.0
    finish_reason: str = "stop"
    latency_seconds: float = 0.0
    consent: bool = True
    side: bool = False
    fate: Fate = "waiting"
    candidate: str | None = None  # the newest candidate that was trained on it, where `fate` is "used"


class TurnPage(msgspec.Struct, frozen=True):
    """Turns in the order of their numbers. `next` is where the next page begins; the feed has ended, for now, where it
    holds no turns."""

    turns: tuple[Turn, ...]
    next: int

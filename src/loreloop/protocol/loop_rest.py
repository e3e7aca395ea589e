"""Bodies of the routes under `/loop/v1`. A field that is not here is refused by name."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

LONGEST_SENTENCE = 2000  # characters of what a loop says


class SetDeployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`canary` gets its share of the users, `target` the others. What is said of recording stays as it was where it is
    None; a new deployment records nothing.

    `redact` are names of what is taken out of turns before they are kept (`email`, `phone`, …), or regular
    expressions; `consent` is what holds for requests that do not say. With `expected_version` the change is made to
    that version of the deployment alone (0: there is none yet).
    """

    target: str
    canary: str | None = None
    canary_percent: Annotated[float, Meta(ge=0, le=100)] = 0.0
    record: bool | None = None
    retention_days: Annotated[float, Meta(gt=0, le=36500)] | None = None
    quota_mib: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    redact: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=500)], ...], Meta(max_length=32)] | None = None
    consent: bool | None = None
    expected_version: Annotated[int, Meta(ge=0)] | None = None


class SetPerson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What answers one person of a deployment in place of its shared weights; `key` is the id of the person's key,
    where the turns of the deployment leave that open."""

    target: str
    key: str | None = None


class MarkTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is said of a turn afterwards; None leaves a mark as it is."""

    side: bool | None = None
    consent: bool | None = None


class UseTurns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A candidate was trained on these turns; `revision` is the path of its weights, once there are any, and `start`
    that of the revision with which it began, whose persons it has learned from as well."""

    candidate: Annotated[str, Meta(min_length=1, max_length=200)]
    turns: Annotated[tuple[str, ...], Meta(max_length=10_000)]
    revision: Annotated[str, Meta(max_length=500)] | None = None
    start: Annotated[str, Meta(min_length=1, max_length=500)] | None = None


class ToldDecision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decision of a loop, `at` in seconds since the epoch."""

    at: float
    cycle: int
    stage: Annotated[str, Meta(max_length=80)]
    verdict: Annotated[str, Meta(max_length=80)]
    sentence: Annotated[str, Meta(max_length=LONGEST_SENTENCE)]


class LoopStanding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a loop stands: `sentence` says why nothing was promoted yet, `numbers` what it was said by. `champion` and
    `candidate` are targets of the deployment; the last decisions, the oldest first."""

    stage: Annotated[str, Meta(max_length=80)]
    cycle: int
    champion: Annotated[str, Meta(max_length=500)]
    sentence: Annotated[str, Meta(max_length=LONGEST_SENTENCE)]
    candidate: Annotated[str, Meta(max_length=500)] | None = None
    paused: bool = False
    numbers: Annotated[dict[Annotated[str, Meta(max_length=80)], float], Meta(max_length=64)] = {}
    decisions: Annotated[tuple[ToldDecision, ...], Meta(max_length=64)] = ()


class ForgetMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the two: a turn's number, or words."""

    turn: int | None = None
    pattern: str = ""


class ResizeMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a resize: the memory's new budget, in tokens."""

    budget_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)]

"""Bodies of the routes under `/loop/v1`. A field that is not here is refused by name."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class SetDeployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`canary` gets its share of the users, `target` the others."""

    target: str
    canary: str | None = None
    canary_percent: Annotated[float, Meta(ge=0, le=100)] = 0.0


class ForgetMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the two: a turn's number, or words."""

    turn: int | None = None
    pattern: str = ""


class ResizeMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a resize: the memory's new budget, in tokens."""

    budget_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)]

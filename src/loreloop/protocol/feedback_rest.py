"""Bodies of the routes that take feedback: our own, and TensorZero's as it is. A field that is not here is refused by
name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loreloop.protocol.feedback import Direction, Level, Source

LONGEST_WHO, LONGEST_WHY, LONGEST_TEXT = 200, 4000, 1 << 18  # characters
YEAR_SECONDS = 366 * 86400

Id = Annotated[str, Meta(min_length=1, max_length=200)]
MetricName = Annotated[str, Meta(min_length=1, max_length=64)]
Who = Annotated[str, Meta(max_length=LONGEST_WHO)]
Tag = Annotated[str, Meta(max_length=500)]
Tags = Annotated[dict[Annotated[str, Meta(min_length=1, max_length=100)], Tag], Meta(max_length=32)]
# As browsers write it: without a path, and nothing behind the host but a port.
Origin = Annotated[str, Meta(max_length=200, pattern=r"\A(\*|[a-z][a-z0-9+.-]*://[^\s/?#@,]+)\Z")]
Lifetime = Annotated[int, Meta(ge=60, le=YEAR_SECONDS)]


class GiveFeedback(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One statement about a turn or an episode. `id` is the client's own, so that a retry changes nothing; `source` is
    what the metric suggests where it is left out; `dryrun` checks all and keeps nothing."""

    target_id: Id
    metric: MetricName
    value: bool | float | str
    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{7,127}\Z")] | None = None
    source: Source | None = None
    who: Who = ""
    why: Annotated[str, Meta(max_length=LONGEST_WHY)] = ""
    tags: Tags = {}
    overrides: Id | None = None
    dryrun: bool = False


class TensorZeroFeedback(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body that TensorZero's gateway takes at `POST /feedback`: one of the two ids, by the level of the metric."""

    metric_name: MetricName
    value: Any
    inference_id: Id | None = None
    episode_id: Id | None = None
    tags: Tags | None = None
    dryrun: bool | None = None


class DeclareMetric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table `[metrics.NAME]`, as in TensorZero's file."""

    type: Literal["boolean", "float"]
    level: Level = "inference"
    optimize: Direction = "max"


class NewLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page for one statement of one person. `who` is whose it will be; the page holds for `expires_seconds`."""

    target_id: Id
    metric: MetricName
    who: Who = ""
    expires_seconds: Lifetime = 3 * 3600


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Feedback from pages of these origins, about the answers of one deployment, at most `per_minute` in all."""

    deployment: Id
    origins: Annotated[tuple[Origin, ...], Meta(min_length=1, max_length=20)]
    per_minute: Annotated[int, Meta(ge=1, le=6000)] = 60
    expires_seconds: Lifetime = 86400

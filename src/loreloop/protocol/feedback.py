"""What was said of an answer, by whom and why, as all rooms share it.

Knows neither where it is kept nor what is learned from it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Source = Literal["human", "judge", "code", "implicit"]
OF_PERSONS: tuple[Source, ...] = ("human", "implicit")  # whose `who` is a person; code and judges sign as well
OPERATOR = "operator:"  # with which the giver of an operator's statements begins, before a name
CHANNELS = ("browser", "link")  # by which statements come in a key's name, beside the key itself
Level = Literal["inference", "episode"]  # of one turn, or of all turns of an episode, in TensorZero's words
Direction = Literal["max", "min"]
MetricKind = Literal["boolean", "float", "comment", "demonstration", "preference"]
# What every deployment understands without declaring it. A thumb and `accepted` are booleans, a score lies in 0 … 1, a
# demonstration is the corrected answer, a preference names the turn that is worse, a verdict and `tool_ok` come from
# code.
THUMB, SCORE, EDIT, PREFERENCE, ACCEPTED = "thumb", "score", "demonstration", "preference", "accepted"
TOOL_OK, COMMENT, VERDICT = "tool_ok", "comment", "verdict"
# An episode has no one answer that could be corrected, or be better than another one.
OF_TURNS_ONLY = (EDIT, PREFERENCE)
GOLDEN_TAG = "golden"  # "1" on labels that were given to measure with, never to train on; `is_golden` reads it


class Metric(msgspec.Struct, frozen=True):
    """A named measure that feedback may give; `optimize` says which direction is the better one."""

    name: str
    kind: MetricKind
    level: Level = "inference"
    optimize: Direction = "max"


BUILT_IN = {
    metric.name: metric
    for metric in (
        Metric(THUMB, "boolean"),
        Metric(SCORE, "float"),
        Metric(EDIT, "demonstration"),
        Metric(PREFERENCE, "preference"),
        Metric(ACCEPTED, "boolean"),
        Metric(TOOL_OK, "boolean"),
        Metric(COMMENT, "comment"),
        Metric(VERDICT, "float"),
    )
}


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """One statement. `target_id` is a turn's or, at the level of episodes, an episode's; `value` is a boolean, a
    number, a text, or, for a preference, the id of the turn that is worse than the target.

    Of statements by the same giver, source and `who` about the same target and metric (for preferences: about the same
    pair) the newest counts: it `overrides` the one before. A statement counts unless it is `retracted` or any other,
    retracted or not, names it in `overrides`. `number` orders statements, retractions included, and is their place in
    the feed: a retraction gives a new one.
    """

    number: int
    id: str
    metric: str
    level: Level
    target_id: str
    deployment: str
    value: bool | float | str
    created: float  # seconds since the epoch
    source: Source = "human"
    who: str = ""
    giver: str = ""  # the id of the key that it came by, and how: "ID", "ID/browser", "ID/link"
    why: str = ""
    tags: dict[str, str] = {}
    overrides: str | None = None  # the id of an earlier statement
    asker: str = ""  # the id of the key that asked for what it is about; "" where that is not known
    retracted: bool = False


class FeedbackPage(msgspec.Struct, frozen=True):
    """Statements in the order of their numbers; `next` is where the next page begins."""

    feedback: tuple[Feedback, ...]
    next: int

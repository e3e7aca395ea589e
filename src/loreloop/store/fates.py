"""What became of a turn, as one rule in two forms: of known facts, and of rows.

The order is the rule: what keeps a turn from being learned from goes before what speaks for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, String, and_, case, literal

from loreloop.protocol.episodes import Fate
from loreloop.store.turn_tables import EPISODES, TURNS


@dataclass(frozen=True)
class Facts:
    """All that a turn's fate depends on. `state` is kept, expired or dropped; `is_mixed` is said of its episode, and
    `is_heard` of either: a statement about it stands."""

    state: str
    consent: bool
    side: bool
    unfinished: bool
    is_mixed: bool
    candidate: str | None
    is_heard: bool


def fate_of(facts: Facts) -> Fate:
    """The fate of a turn."""
    if facts.state != "kept":
        return "expired" if facts.state == "expired" else "dropped"
    if not facts.consent:
        return "no_consent"
    if facts.side:
        return "side"
    if facts.unfinished:
        return "unfinished"
    if facts.is_mixed:
        return "mixed"
    if facts.candidate is not None:
        return "used"
    return "trainable" if facts.is_heard else "waiting"


def fate_column() -> ColumnElement[str]:
    """The same rule over a row of turns, joined with its episode's (which may be missing)."""
    fate: ColumnElement[str] = case(
        (TURNS.c.state == "expired", "expired"),
        (TURNS.c.state != "kept", "dropped"),
        (TURNS.c.consent.is_(False), "no_consent"),
        (TURNS.c.side.is_(True), "side"),
        (TURNS.c.unfinished.is_(True), "unfinished"),
        (and_(EPISODES.c.mixed.is_not(None), EPISODES.c.mixed.is_(True)), "mixed"),
        (TURNS.c.candidate.is_not(None), "used"),
        ((TURNS.c.heard > 0) | (EPISODES.c.heard > 0), "trainable"),
        else_=literal("waiting", String),
    )
    return fate.label("fate")

"""What became of a turn, by the plain rule of docs/episodes.md over known facts, with which the rows must agree."""

from __future__ import annotations

from dataclasses import dataclass

from loreloop.protocol.episodes import Fate


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

"""Which statements stand, and which events: what was taken back, overridden, repeated or contradicted counts no more.

Knows neither turns nor rewards.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

from loreloop.learn.loop.reward.events import LabelledEvent, item_key
from loreloop.protocol.feedback import Feedback
from loreloop.protocol.feedback_rules import standing

Reason = Literal[
    "retracted",
    "overridden",
    "unknown_turn",
    "no_consent",
    "deleted_person",
    "side",
    "unfinished",
    "expired",
    "dropped",
    "not_a_label",
    "out_of_range",
    "unchanged",
    "different_prompts",
    "repeated",
    "low_agreement",
    "golden",
]


def current(statements: Sequence[Feedback], left_out: Counter[Reason]) -> list[Feedback]:
    """The statements that stand, by the one rule there is of that; the others are counted."""
    found = standing(statements)
    stands = {said.id for said in found}
    for said in {said.id: said for said in statements}.values():  # a retraction has the id of what it takes back
        if said.id not in stands:
            left_out["retracted" if said.retracted else "overridden"] += 1
    return found


def once(events: Sequence[LabelledEvent], left_out: Counter[Reason]) -> list[LabelledEvent]:
    """One event for what one voice says of the same answers, however many turns held them: the newest."""
    newest: dict[tuple[str, ...], LabelledEvent] = {}
    for event in events:
        # Nobody's statements are told apart by metric alone, so that a judge and a verifier are both heard.
        place = (event.person or f"by {event.metric}", *_subject(event))
        left_out["repeated"] += place in newest
        newest[place] = event
    return sorted(newest.values(), key=lambda one: one.number)


def agreed(events: Sequence[LabelledEvent], least: float, left_out: Counter[Reason]) -> list[LabelledEvent]:
    """Without what voices contradict one another about."""
    votes: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
    for event in events:
        votes[_subject(event)].append(_side(event))
    found = []
    for event in events:
        said = votes[_subject(event)]
        share = sum(said) / len(said)
        if len(said) > 1 and max(share, 1 - share) < least:
            left_out["low_agreement"] += 1
        else:
            found.append(event)
    return found


def _subject(event: LabelledEvent) -> tuple[str, ...]:
    """The answers that an event is about, whichever of them it prefers."""
    keys = [item_key(event.item)] + ([item_key(event.worse)] if event.worse else [])
    return tuple(sorted(keys))


def _side(event: LabelledEvent) -> float:
    if event.worse is None:
        return event.value
    return float(item_key(event.item) < item_key(event.worse))

"""What became of a turn, as one rule over rows.

The order is the rule: what keeps a turn from being learned from goes before what speaks for it.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, String, and_, case, literal

from loreloop.store.turn_tables import EPISODES, TURNS


def fate_column() -> ColumnElement[str]:
    """The fate of a row of turns, joined with its episode's (which may be missing)."""
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

"""Whose a recorded turn or an episode is, and whether it is still there: without its content, and for one id."""

from __future__ import annotations

from typing import Literal

import msgspec
from sqlalchemy import Connection, select

from loreloop.store.turn_tables import EPISODES, TURNS

State = Literal["kept", "expired", "dropped"]
# An episode is what the best of its turns is.
STATES: tuple[State, ...] = ("kept", "expired", "dropped")


class Place(msgspec.Struct, frozen=True):
    """The deployment that answered, and the key that asked."""

    deployment: str
    key_id: str
    state: State


def of_turn(connection: Connection, id: str) -> Place | None:
    """Where the turn of this id belongs; None where nothing is known of it."""
    at = TURNS.c
    row = connection.execute(select(at.deployment, at.key_id, at.state).where(at.id == id)).first()
    return Place(row.deployment, row.key_id, row.state) if row else None


def of_episodes(connection: Connection, id: str) -> list[Place]:
    """Where the episodes of this id belong: clients choose ids, so several keys may have one."""
    at, found = EPISODES.c, []
    rows = connection.execute(select(at.number, at.deployment, at.key_id).where(at.id == id)).all()
    for row in rows:
        states = {*connection.scalars(select(TURNS.c.state).where(TURNS.c.episode == row.number).distinct())}
        best: State = next((each for each in STATES if each in states), "expired")
        found.append(Place(row.deployment, row.key_id, best))
    return found

"""Whom a candidate was trained on: noted by turns, told by persons. A note outlives the turns, since deletion needs
it."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from loreloop.protocol.episodes import Person
from loreloop.protocol.loop_rest import UseTurns
from loreloop.store.turn_removal import AT_ONCE
from loreloop.store.turn_tables import TURN_USES, TURNS


class Use(msgspec.Struct, frozen=True):
    """A candidate that was trained on a person's turns; `revision` is the path of its weights, "" where none were
    told."""

    deployment: str
    candidate: str
    revision: str
    used: float


def use(connection: Connection, deployment: str, used: UseTurns, now: float) -> list[str]:
    """Notes that a candidate was trained on turns, and on whom. The ids that are not kept here (any more): on these
    nobody may have been trained, so a candidate that was should not be promoted."""
    known: set[str] = set()
    of_candidate = (TURN_USES.c.deployment == deployment) & (TURN_USES.c.candidate == used.candidate)
    for start in range(0, len(used.turns), AT_ONCE):
        some = (TURNS.c.deployment == deployment) & TURNS.c.id.in_(used.turns[start : start + AT_ONCE])
        some &= TURNS.c.state == "kept"
        rows = connection.execute(select(TURNS.c.id, TURNS.c.key_id, TURNS.c.user).where(some)).all()
        known |= {row.id for row in rows}
        connection.execute(update(TURNS).where(some).values(candidate=used.candidate))
        for person in {Person(row.key_id, row.user) for row in rows}:
            values = {"key_id": person.key_id, "user": person.user, "deployment": deployment}
            row = upsert(TURN_USES).values(**values, candidate=used.candidate, revision="", used=now)
            connection.execute(row.on_conflict_do_nothing())
    if used.revision is not None:
        connection.execute(update(TURN_USES).where(of_candidate).values(revision=used.revision))
    return [turn_id for turn_id in used.turns if turn_id not in known]


def uses(connection: Connection, person: Person) -> tuple[Use, ...]:
    """The candidates that were trained on a person's turns, the oldest first."""
    of_person = (TURN_USES.c.key_id == person.key_id) & (TURN_USES.c.user == person.user)
    rows = connection.execute(select(TURN_USES).where(of_person).order_by(TURN_USES.c.used))
    return tuple(Use(row.deployment, row.candidate, row.revision, row.used) for row in rows)

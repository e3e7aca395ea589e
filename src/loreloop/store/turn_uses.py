"""Whom a candidate was trained on: noted by turns, told by persons. A note outlives the turns, since deletion needs
it."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, literal, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from loreloop.protocol.episodes import LEARNABLE, REFUSED, Person
from loreloop.protocol.loop_rest import UseTurns
from loreloop.store.turn_tables import AT_ONCE, TURN_USES, TURNS
from loreloop.store.turns import all_turns


class Use(msgspec.Struct, frozen=True):
    """A candidate that was trained on a person's turns; `revision` is the path of its weights, "" where none were
    told."""

    deployment: str
    candidate: str
    revision: str
    used: float


class Unusable(msgspec.Struct, frozen=True):
    """Turns on which nobody may have been trained, in the order in which they were named: those that are not known here
    (any more), and those of which somebody has said that nothing may be learned or that broke off."""

    unknown: tuple[str, ...]
    withdrawn: tuple[str, ...]


def use(connection: Connection, deployment: str, used: UseTurns, now: float) -> Unusable:
    """Notes that a candidate was trained on turns, and on whom; what it gives are those on which it must not have been,
    as things stand in this transaction."""
    fates: dict[str, str] = {}
    of_candidate = (TURN_USES.c.deployment == deployment) & (TURN_USES.c.candidate == used.candidate)
    for start in range(0, len(used.turns), AT_ONCE):
        some = (TURNS.c.deployment == deployment) & TURNS.c.id.in_(used.turns[start : start + AT_ONCE])
        some &= TURNS.c.state != "dropped"
        rows = connection.execute(all_turns(with_body=False).where(some)).all()
        fates |= {row.id: row.fate for row in rows}
        fine = TURNS.c.id.in_([row.id for row in rows if row.fate in LEARNABLE])
        connection.execute(update(TURNS).where(fine).values(candidate=used.candidate))
        # Of the others, too: whoever says so has trained on them, and their persons' deletion must find the weights.
        for person in {Person(row.key_id, row.user) for row in rows if row.state == "kept"}:
            values = {"key_id": person.key_id, "user": person.user, "deployment": deployment}
            row = upsert(TURN_USES).values(**values, candidate=used.candidate, revision="", used=now)
            connection.execute(row.on_conflict_do_nothing())
    if used.start is not None:
        _inherit(connection, deployment, used, now)
    if used.revision is not None:
        connection.execute(update(TURN_USES).where(of_candidate).values(revision=used.revision))
    return Unusable(
        unknown=tuple(turn_id for turn_id in used.turns if turn_id not in fates),
        # What has expired since, or stands in an episode that other weights went on with, was free to be learned from
        # when it was collected.
        withdrawn=tuple(turn_id for turn_id in used.turns if fates.get(turn_id) in REFUSED),
    )


def _inherit(connection: Connection, deployment: str, used: UseTurns, now: float) -> None:
    """Notes of a candidate the persons of the revision that it began with: what that has learned it knows, too."""
    names = (TURN_USES.c.key_id, TURN_USES.c.user, TURN_USES.c.deployment)
    rest = (literal(used.candidate), literal(""), literal(now))
    before = select(*names, *rest).where(TURN_USES.c.deployment == deployment, TURN_USES.c.revision == used.start)
    columns = ["key_id", "user", "deployment", "candidate", "revision", "used"]
    connection.execute(upsert(TURN_USES).from_select(columns, before.distinct()).on_conflict_do_nothing())


def uses(connection: Connection, person: Person) -> tuple[Use, ...]:
    """The candidates that were trained on a person's turns, the oldest first."""
    of_person = (TURN_USES.c.key_id == person.key_id) & (TURN_USES.c.user == person.user)
    rows = connection.execute(select(TURN_USES).where(of_person).order_by(TURN_USES.c.used))
    return tuple(Use(row.deployment, row.candidate, row.revision, row.used) for row in rows)

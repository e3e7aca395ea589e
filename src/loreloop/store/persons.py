"""A person's own: everything that is kept of one user of a key, given out or deleted.

A person who was deleted is remembered as such, by key and user alone, so that nothing is kept of them again and no loop
trains on what it may still hold.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, func, select
from sqlalchemy.dialects.sqlite import insert as upsert

from loreloop.protocol.episodes import Person, Turn
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.feedback import Feedback
from loreloop.store import feedback_removal, person_arms, turn_removal
from loreloop.store.schema import MEMORIES, RESPONSES
from loreloop.store.turn_tables import DELETED_FROM, DELETED_PERSONS, TURN_USES, TURNS
from loreloop.store.turn_uses import Use, uses
from loreloop.store.turns import all_turns, turn_of

MOST_EXPORTED = 10_000


class Deletion(msgspec.Struct, frozen=True):
    """What went, and the candidates that have learned from it: their weights still hold what they made of it."""

    turns: int
    memories: int
    responses: int
    feedback: int
    trained: tuple[Use, ...]


class Export(msgspec.Struct, frozen=True):
    """All that is kept of a person: turns with their content whatever was consented to, what the person has said of
    answers and what was said of these turns, names of memories, uses."""

    person: Person
    turns: tuple[Turn, ...]
    feedback: tuple[Feedback, ...]
    memories: tuple[str, ...]
    trained: tuple[Use, ...]


def export(connection: Connection, person: Person) -> Export:
    """Everything of one person; of turns and of feedback the newest `MOST_EXPORTED`."""
    newest = all_turns().where(_of(TURNS, person)).order_by(TURNS.c.number.desc()).limit(MOST_EXPORTED)
    turns = [turn_of(row, whole=True) for row in connection.execute(newest)]
    memories = connection.scalars(select(MEMORIES.c.id).where(_of(MEMORIES, person)).order_by(MEMORIES.c.id))
    said = feedback_removal.of_person(connection, person, MOST_EXPORTED)
    return Export(
        person=person,
        turns=tuple(reversed(turns)),
        feedback=tuple(said),
        memories=tuple(memories),
        trained=uses(connection, person),
    )


def forget(connection: Connection, person: Person, now: float) -> Deletion:
    """Deletes a person: turns, feedback, memories, kept answers of the responses API, weights of their own. Done again
    it deletes what has come since, and tells the same candidates. BadRequest for nobody: that would be all that a key
    has asked without a user, and all that it will."""
    if not person.user:
        raise BadRequest(
            "A person who is deleted has a name, and the empty one is that of all requests without a user. Turns of "
            "those go with their days, or with their deployment."
        )
    _note(connection, person, now)
    n_said = feedback_removal.forget_person(connection, person)  # before the turns that it finds them by
    n_turns = turn_removal.remove(connection, _of(TURNS, person))
    n_memories = connection.execute(delete(MEMORIES).where(_of(MEMORIES, person))).rowcount
    # A kept answer tells its request's user, as OpenAI's do.
    user = func.coalesce(func.json_extract(RESPONSES.c.answer, "$.user"), "")
    mine = (RESPONSES.c.key_id == person.key_id) & (user == person.user)
    n_responses = connection.execute(delete(RESPONSES).where(mine)).rowcount
    person_arms.forget_person(connection, person)
    return Deletion(
        turns=n_turns,
        memories=n_memories,
        responses=n_responses,
        feedback=n_said,
        trained=uses(connection, person),
    )


def deleted_of(connection: Connection, deployment: str, limit: int) -> list[Person]:
    """Deleted persons whose key has asked this deployment, the last deleted first: whose turns no loop may train on,
    also where it holds them itself."""
    gone, where = DELETED_PERSONS.c, DELETED_FROM.c
    joined = DELETED_FROM.join(DELETED_PERSONS, (gone.key_id == where.key_id) & (gone.user == where.user))
    found = select(gone.key_id, gone.user).select_from(joined).where(where.deployment == deployment)
    return [Person(*row) for row in connection.execute(found.order_by(gone.deleted.desc()).limit(limit))]


def _note(connection: Connection, person: Person, now: float) -> None:
    values = {"key_id": person.key_id, "user": person.user}
    connection.execute(upsert(DELETED_PERSONS).values(**values, deleted=now).on_conflict_do_nothing())
    # Of turns that have expired nobody knows the user any more, so every deployment of the key is told.
    asked = select(TURNS.c.deployment).where(TURNS.c.key_id == person.key_id)
    trained = select(TURN_USES.c.deployment).where(_of(TURN_USES, person))
    for name in connection.scalars(asked.union(trained)).all():
        connection.execute(upsert(DELETED_FROM).values(deployment=name, **values).on_conflict_do_nothing())


def _of(table: Any, person: Person) -> ColumnElement[bool]:
    return (table.c.key_id == person.key_id) & (table.c.user == person.user)

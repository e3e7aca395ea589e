"""Persons who were deleted, as they are remembered: by key and user alone, and by the deployments that must hear of it.

Knows nothing of what was kept of them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, func, select, tuple_
from sqlalchemy.dialects.sqlite import insert as upsert

from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import BadRequest, Gone
from loreloop.store.turn_tables import DELETED_FROM, DELETED_PERSONS

GONE, FROM = DELETED_PERSONS.c, DELETED_FROM.c


class DeletedPage(msgspec.Struct, frozen=True):
    """Deleted persons in a fixed order. `next` is where the next page begins; None: there are no more."""

    persons: tuple[Person, ...]
    next: str | None


class Begun(msgspec.Struct, frozen=True):
    """Something of a person's that is on its way, and since when, in seconds since the epoch."""

    person: Person
    at: float


def note(connection: Connection, person: Person, deployments: Iterable[str], now: float) -> None:
    """Remembers that a person was deleted just now, and who is to hear of it."""
    values = {"key_id": person.key_id, "user": person.user}
    row = upsert(DELETED_PERSONS).values(**values, deleted=now)
    # The last time counts: what was on its way then must not be kept either.
    connection.execute(row.on_conflict_do_update(["key_id", "user"], set_={"deleted": now}))
    for name in deployments:
        connection.execute(upsert(DELETED_FROM).values(deployment=name, **values).on_conflict_do_nothing())


def deleted_at(connection: Connection, person: Person) -> float | None:
    """When a person was deleted last, in seconds since the epoch; None for one who never was."""
    of_person = (GONE.key_id == person.key_id) & (GONE.user == person.user)
    return connection.scalar(select(GONE.deleted).where(of_person))


def is_deleted(connection: Connection, person: Person) -> bool:
    """Whether this person was deleted: no turn of theirs is kept any more."""
    return deleted_at(connection, person) is not None


def n_of_key(connection: Connection, key_id: str, most: int) -> int:
    """How many persons of a key were deleted; counted up to `most`."""
    some = select(GONE.user).where(GONE.key_id == key_id).limit(most)
    return connection.scalar(select(func.count()).select_from(some.subquery())) or 0


def was_deleted_since(connection: Connection, begun: Begun) -> bool:
    """Whether a person was deleted while something of theirs was on its way."""
    at = deleted_at(connection, begun.person)
    return at is not None and at >= begun.at


def check_none(connection: Connection, persons: Iterable[Person]) -> None:
    """Raises Gone where one of them was deleted."""
    for person in persons:
        if is_deleted(connection, person):
            raise Gone(f"The person {person.user[:80]!r} was deleted, and nothing is kept of deleted persons.")


def page(connection: Connection, deployment: str, after: str, limit: int) -> DeletedPage:
    """Deleted persons whose key has asked this deployment: whose turns no loop may train on, also where it holds them
    itself. `after` is "" or the `next` of a page; BadRequest for another text."""
    # By their names and not by time: who is deleted again while somebody turns pages keeps the place.
    place = tuple_(FROM.key_id, FROM.user)
    wanted = select(FROM.key_id, FROM.user).where(FROM.deployment == deployment)
    if after:
        wanted = wanted.where(place > tuple_(*_person_of(after)))
    rows = connection.execute(wanted.order_by(FROM.key_id, FROM.user).limit(limit + 1)).all()
    persons = tuple(Person(*row) for row in rows[:limit])
    return DeletedPage(persons, _mark_of(persons[-1]) if len(rows) > limit else None)


def _mark_of(person: Person) -> str:
    # Users may hold any letters, and this stands in addresses.
    return base64.urlsafe_b64encode(msgspec.json.encode((person.key_id, person.user))).decode().rstrip("=")


def _person_of(mark: str) -> tuple[str, str]:
    try:
        content = base64.urlsafe_b64decode(mark.encode() + b"=" * (-len(mark) % 4))
        return msgspec.json.decode(content, type=tuple[str, str])
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise BadRequest(f"after is {mark[:40]!r}; it must be the `next` of a page, or left out.") from None

"""What answers single persons of a deployment in place of its shared weights."""

from __future__ import annotations

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, insert, select

from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import NotFound
from loreloop.store import deleted, deployments
from loreloop.store.files import in_row, placed
from loreloop.store.rows import Arm, PersonArm
from loreloop.store.turn_tables import PERSON_ARMS, TURNS

MINE = PERSON_ARMS.c


def find(connection: Connection, deployment: str, person: Person) -> Arm | None:
    """The arm of one person; None where the shared weights answer them."""
    text = connection.scalar(select(MINE.arm).where(*_is(deployment, person)))
    return None if text is None else _arm(connection, text)


def get(connection: Connection, deployment: str, person: Person) -> PersonArm:
    """Like `find`, with since when and by whom; NotFound where the shared weights answer."""
    row = connection.execute(select(PERSON_ARMS).where(*_is(deployment, person))).first()
    if row is None:
        raise _unknown(deployment, person)
    return PersonArm(person, _arm(connection, row.arm), row.created, row.by)


def set(connection: Connection, deployment: str, row: PersonArm) -> None:
    """Gives a person an arm of their own, in place of an earlier one. Gone where they were deleted meanwhile."""
    deleted.check_none(connection, (row.person,))
    arm = msgspec.json.encode(deployments.mapped_arm(row.arm, in_row)).decode()
    values = {"deployment": deployment, "key_id": row.person.key_id, "user": row.person.user}
    about = {"target": row.arm.target, "created": row.created, "by": row.by}
    connection.execute(insert(PERSON_ARMS).prefix_with("OR REPLACE").values(**values, arm=arm, **about))
    deployments.hold(connection, deployment, deployments.current(connection, deployment).split)


def remove(connection: Connection, deployment: str, person: Person) -> None:
    """Lets the shared weights answer a person again; NotFound where they do already."""
    if not connection.execute(delete(PERSON_ARMS).where(*_is(deployment, person))).rowcount:
        raise _unknown(deployment, person)
    deployments.hold(connection, deployment, deployments.current(connection, deployment).split)


def forget_person(connection: Connection, person: Person) -> int:
    """Takes a person's arms out of all deployments; of how many."""
    of_person = (MINE.key_id == person.key_id) & (MINE.user == person.user)
    names = connection.scalars(select(MINE.deployment).where(of_person)).all()
    for name in names:
        remove(connection, name, person)
    return len(names)


def list_page(connection: Connection, deployment: str, limit: int) -> list[PersonArm]:
    """The persons of a deployment with arms of their own, the newest first."""
    rows = connection.execute(
        select(PERSON_ARMS).where(MINE.deployment == deployment).order_by(MINE.created.desc()).limit(limit)
    )
    return [PersonArm(Person(row.key_id, row.user), _arm(connection, row.arm), row.created, row.by) for row in rows]


def keys_of_user(connection: Connection, deployment: str, user: str) -> list[str]:
    """The keys whose requests named this user to the deployment, as far as turns of it are kept."""
    found = select(TURNS.c.key_id).where(TURNS.c.deployment == deployment, TURNS.c.user == user).distinct()
    return [*connection.scalars(found.order_by(TURNS.c.key_id))]


def _is(deployment: str, person: Person) -> tuple[ColumnElement[bool], ...]:
    return (MINE.deployment == deployment, MINE.key_id == person.key_id, MINE.user == person.user)


def _unknown(deployment: str, person: Person) -> NotFound:
    return NotFound(
        f"The user {person.user[:80]!r} of key {person.key_id!r} has no weights of their own in {deployment!r}; the "
        "shared ones answer."
    )


def _arm(connection: Connection, text: str) -> Arm:
    written = msgspec.json.decode(text, type=Arm)
    return deployments.mapped_arm(written, lambda folder: placed(connection, folder))

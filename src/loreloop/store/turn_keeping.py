"""Recorded turns on their way into the store, in batches. Knows no request.

A batch is one transaction, so that a killed server leaves whole turns and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, insert, select, true, update

from loreloop.protocol.episodes import Person
from loreloop.store import feedback, feedback_removal
from loreloop.store.deleted import is_deleted
from loreloop.store.feedback import Target
from loreloop.store.rows import RecordingRule
from loreloop.store.schema import DEPLOYMENT_VERSIONS, DEPLOYMENTS
from loreloop.store.turn_bodies import NewTurn
from loreloop.store.turn_removal import shrink, tally
from loreloop.store.turn_tables import EPISODES, TURN_BODIES, TURNS


class _Version(NamedTuple):
    name: str
    number: int
    created: float


def keep(connection: Connection, batch: Sequence[NewTurn]) -> int:
    """Keeps turns, and how many of them were; those of persons who were deleted, and of deployments that are gone, are
    not. The oldest turns make room where a deployment is over its quota."""
    # A deployment may have been deleted while its last turns waited; a new one of that name shall not get them.
    there = {version: _is_there(connection, version) for version in {_version(new) for new in batch}}
    rules = {name: rule_of(connection, name) for name in {new.deployment for new in batch}}
    n_kept = 0
    for new in batch:
        if not there[_version(new)]:
            _forget_said(connection, new)
            continue
        is_gone = is_deleted(connection, Person(new.key_id, new.user))
        if is_gone:
            _forget_said(connection, new)
        is_kept = new.body is not None and not is_gone
        _insert(connection, new, new.body if is_kept else None)
        n_kept += is_kept
    for name, rule in rules.items():
        if rule is not None:
            shrink(connection, name, rule)
    return n_kept


def _forget_said(connection: Connection, new: NewTurn) -> None:
    """Deletes what was said of a turn while it waited, and of its episode where that has no other turns."""
    feedback_removal.forget_target(connection, _turn(new))
    if connection.execute(select(EPISODES.c.number).where(_is_episode_of(new))).first() is None:
        feedback_removal.forget_target(connection, _episode_of(new))


def _turn(new: NewTurn) -> Target:
    return Target(new.id, "inference", new.deployment, new.key_id)


def _episode_of(new: NewTurn) -> Target:
    return Target(new.episode_id, "episode", new.deployment, new.key_id)


def _is_episode_of(new: NewTurn) -> ColumnElement[bool]:
    of_key = (EPISODES.c.deployment == new.deployment) & (EPISODES.c.key_id == new.key_id)
    return of_key & (EPISODES.c.id == new.episode_id)


def _version(new: NewTurn) -> _Version:
    return _Version(new.deployment, new.version, new.version_created)


def _is_there(connection: Connection, version: _Version) -> bool:
    made = select(DEPLOYMENT_VERSIONS.c.created).where(
        DEPLOYMENT_VERSIONS.c.name == version.name, DEPLOYMENT_VERSIONS.c.version == version.number
    )
    return bool(connection.scalar(made) == version.created)


def _insert(connection: Connection, new: NewTurn, body: bytes | None) -> None:
    n_bytes, episode = len(body) if body is not None else 0, _episode(connection, new)
    refused = new.said_consent is False or _was_refused(connection, episode, new)
    row = {
        "id": new.id,
        "deployment": new.deployment,
        "episode": episode,
        "key_id": new.key_id,
        "user": new.user if body is not None else "",
        "created": new.created,
        "state": "dropped" if body is None else "kept",
        "arm": new.arm,
        "version": new.version,
        "revision": new.revision,
        "consent": new.consent and not refused,
        "refused": refused,
        "side": new.side,
        "unfinished": new.unfinished,
        # Feedback may come faster than what it is about.
        "heard": feedback.is_heard(connection, _turn(new)),
        "candidate": None,
        "n_bytes": n_bytes,
    }
    connection.execute(insert(TURNS).values(row))
    if body is not None:
        connection.execute(insert(TURN_BODIES).values(turn_id=new.id, body=body))
    tally(connection, new.deployment, n_bytes=n_bytes, dropped=int(body is None))


def _episode(connection: Connection, new: NewTurn) -> int:
    """The number of the turn's episode, which is made with its first turn and mixed with the first of other weights."""
    weights = new.revision or new.base_model
    of_id = _is_episode_of(new)
    row = connection.execute(select(EPISODES.c.number, EPISODES.c.weights, EPISODES.c.mixed).where(of_id)).first()
    if row is None:
        values = {"id": new.episode_id, "deployment": new.deployment, "key_id": new.key_id}
        heard = feedback.is_heard(connection, _episode_of(new))
        made = insert(EPISODES).values(**values, weights=weights, mixed=False, heard=heard).returning(EPISODES.c.number)
        return int(connection.execute(made).scalar_one())
    # A turn that was dropped counts, too: its answer was given, and led to what came after.
    if row.weights != weights and not row.mixed:
        connection.execute(update(EPISODES).where(of_id).values(mixed=True))
        tally(connection, new.deployment, mixed=1)
    return int(row.number)


def _was_refused(connection: Connection, episode: int, new: NewTurn) -> bool:
    """Whether somebody has said no to an earlier turn of the episode, whose words this one repeats in its messages. The
    same person may say yes to a later turn; nobody else may, and silence is none. Whose an expired no was is known no
    more, and its words come again with each turn, so it stands against everybody."""
    others = true() if new.said_consent is None else TURNS.c.user != new.user
    refused = select(TURNS.c.id).where(TURNS.c.episode == episode, TURNS.c.refused.is_(True), others)
    return connection.execute(refused.limit(1)).first() is not None


def rule_of(connection: Connection, deployment: str) -> RecordingRule | None:
    """What a deployment records; None where there is no such deployment."""
    row = connection.execute(select(DEPLOYMENTS.c.recording).where(DEPLOYMENTS.c.name == deployment)).first()
    if row is None:
        return None
    return msgspec.json.decode(row.recording, type=RecordingRule) if row.recording else RecordingRule()

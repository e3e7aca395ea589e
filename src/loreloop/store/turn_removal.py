"""How recorded turns go: with their deployment, with a person, with age, and when there are too many.

What has expired leaves a row without content behind, so that its id is still answered with what became of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from loreloop.store.feedback_tables import FEEDBACK
from loreloop.store.rows import RecordingRule
from loreloop.store.schema import DEPLOYMENTS
from loreloop.store.turn_tables import DELETED_FROM, EPISODES, TURN_BODIES, TURN_TALLIES, TURNS

DAY_SECONDS = 86400.0
MOST_TRACES = 10_000  # rows without content, of one deployment
ROOM = 0.95  # of the quota, so that not every turn has to take one away
AT_ONCE = 500  # rows of one statement


def forget_deployment(connection: Connection, name: str) -> None:
    """Deletes all that a deployment has recorded. Whom its candidates were trained on stays known: these outlive it."""
    remove(connection, TURNS.c.deployment == name)
    connection.execute(delete(EPISODES).where(EPISODES.c.deployment == name))
    for table in (TURN_TALLIES, DELETED_FROM):
        connection.execute(delete(table).where(table.c.deployment == name))


def n_expired(connection: Connection) -> int:
    """Turns of all deployments that had their time, or gave way to newer ones."""
    return connection.scalar(select(func.coalesce(func.sum(TURN_TALLIES.c.expired), 0))) or 0


def remove(connection: Connection, which: ColumnElement[bool]) -> int:
    """Deletes turns with all that is kept of them; how many."""
    found = select(TURNS.c.deployment, func.sum(TURNS.c.n_bytes).label("n"), func.count().label("rows")).where(which)
    gone = connection.execute(found.group_by(TURNS.c.deployment)).all()
    episodes = {*connection.scalars(select(TURNS.c.episode).where(which).distinct())}
    connection.execute(delete(FEEDBACK).where(FEEDBACK.c.target_id.in_(select(TURNS.c.id).where(which))))
    connection.execute(delete(TURN_BODIES).where(TURN_BODIES.c.turn_id.in_(select(TURNS.c.id).where(which))))
    connection.execute(delete(TURNS).where(which))
    for row in gone:
        tally(connection, row.deployment, n_bytes=-row.n)
    _remove_empty(connection, sorted(episodes))
    return sum(row.rows for row in gone)


def tally(connection: Connection, deployment: str, **more: int) -> None:
    """Adds to the numbers that a deployment keeps."""
    zero = dict.fromkeys(("n_bytes", "expired", "dropped", "mixed"), 0)
    added = {name: TURN_TALLIES.c[name] + n for name, n in more.items()}
    row = upsert(TURN_TALLIES).values(deployment=deployment, **zero | more)
    connection.execute(row.on_conflict_do_update(["deployment"], set_=added))


def shrink(connection: Connection, deployment: str, rule: RecordingRule) -> None:
    """Brings what a deployment has recorded below its quota; the oldest turns go first."""
    most = rule.quota_mib << 20
    n_bytes = connection.scalar(select(TURN_TALLIES.c.n_bytes).where(TURN_TALLIES.c.deployment == deployment)) or 0
    if n_bytes <= most:
        return
    kept = select(TURNS.c.id, TURNS.c.n_bytes).where(TURNS.c.deployment == deployment, TURNS.c.state == "kept")
    while n_bytes > most * ROOM:
        oldest = connection.execute(kept.order_by(TURNS.c.created).limit(AT_ONCE)).all()
        if not oldest:
            return
        going: list[str] = []
        for row in oldest:
            if n_bytes <= most * ROOM:
                break
            going.append(row.id)
            n_bytes -= row.n_bytes
        _expire(connection, deployment, going)


def sweep(connection: Connection, now: float) -> None:
    """Expires what is over its deployment's days, and takes the oldest rows without content away."""
    for row in connection.execute(select(DEPLOYMENTS.c.name, DEPLOYMENTS.c.recording)).all():
        if row.recording is None:
            continue
        rule = msgspec.json.decode(row.recording, type=RecordingRule)
        over = select(TURNS.c.id).where(
            TURNS.c.deployment == row.name,
            TURNS.c.state == "kept",
            TURNS.c.created < now - rule.retention_days * DAY_SECONDS,
        )
        while ids := connection.scalars(over.limit(AT_ONCE)).all():
            _expire(connection, row.name, ids)
        shrink(connection, row.name, rule)
        _trim(connection, row.name)


def _expire(connection: Connection, deployment: str, ids: Sequence[str]) -> None:
    which = TURNS.c.id.in_(ids)
    n_bytes = connection.scalar(select(func.coalesce(func.sum(TURNS.c.n_bytes), 0)).where(which)) or 0
    connection.execute(delete(TURN_BODIES).where(TURN_BODIES.c.turn_id.in_(ids)))
    # Corrections and reasons are content as well.
    connection.execute(delete(FEEDBACK).where(FEEDBACK.c.target_id.in_(ids)))
    connection.execute(update(TURNS).where(which).values(state="expired", user="", n_bytes=0))
    tally(connection, deployment, n_bytes=-n_bytes, expired=len(ids))


def _trim(connection: Connection, deployment: str) -> None:
    # A kept row counts as nothing here: quota and days bound those.
    traces = select(TURNS.c.number).where(TURNS.c.deployment == deployment, TURNS.c.state != "kept")
    first = connection.scalar(traces.order_by(TURNS.c.number.desc()).offset(MOST_TRACES).limit(1))
    if first is not None:
        remove(connection, (TURNS.c.deployment == deployment) & (TURNS.c.state != "kept") & (TURNS.c.number <= first))


def _remove_empty(connection: Connection, episodes: Sequence[int]) -> None:
    has_turns = select(TURNS.c.id).where(TURNS.c.episode == EPISODES.c.number).exists()
    for start in range(0, len(episodes), AT_ONCE):
        some = EPISODES.c.number.in_(episodes[start : start + AT_ONCE])
        for row in connection.execute(select(EPISODES.c.id, EPISODES.c.deployment).where(some, ~has_turns)).all():
            said = (FEEDBACK.c.target_id == row.id) & (FEEDBACK.c.deployment == row.deployment)
            connection.execute(delete(FEEDBACK).where(said, FEEDBACK.c.level == "episode"))
        connection.execute(delete(EPISODES).where(some, ~has_turns))

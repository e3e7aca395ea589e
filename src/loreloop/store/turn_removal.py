"""How recorded turns go: with their deployment, with a person, with age, and when there are too many.

What has expired leaves a row without content behind, so that its id is still answered with what became of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, exists, func, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from loreloop.store import feedback_removal
from loreloop.store.feedback_tables import FEEDBACK
from loreloop.store.rows import RecordingRule
from loreloop.store.schema import DEPLOYMENTS
from loreloop.store.turn_tables import AT_ONCE, DELETED_FROM, EPISODES, TURN_BODIES, TURN_TALLIES, TURNS

DAY_SECONDS = 86400.0
MOST_TRACES = 10_000  # rows without content, of one deployment
ROOM = 0.95  # of the quota, so that not every turn has to take one away
MOST_AT_ONCE = 4000  # rows of one transaction: everybody who writes waits behind it


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
    feedback_removal.remove(connection, FEEDBACK.c.target_id.in_(select(TURNS.c.id).where(which)))
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


def shrink(connection: Connection, deployment: str, rule: RecordingRule) -> int:
    """Brings what a deployment has recorded below its quota, or nearer to it where that takes very many turns; the
    oldest go first. How many went."""
    most = rule.quota_mib << 20
    n_gone = 0
    n_bytes = connection.scalar(select(TURN_TALLIES.c.n_bytes).where(TURN_TALLIES.c.deployment == deployment)) or 0
    if n_bytes <= most:
        return 0
    kept = select(TURNS.c.id, TURNS.c.n_bytes).where(TURNS.c.deployment == deployment, TURNS.c.state == "kept")
    while n_bytes > most * ROOM and n_gone < MOST_AT_ONCE:
        oldest = connection.execute(kept.order_by(TURNS.c.created).limit(AT_ONCE)).all()
        if not oldest:
            break
        going: list[str] = []
        for row in oldest:
            if n_bytes <= most * ROOM:
                break
            going.append(row.id)
            n_bytes -= row.n_bytes
        _expire(connection, deployment, going)
        n_gone += len(going)
    return n_gone


def sweep(connection: Connection, now: float) -> bool:
    """Expires some of what is over its deployment's days or quota, and takes some of the oldest rows without content
    away; whether there may be more to do. To be called again until there is not, a transaction each."""
    # The first that has something to do ends the round.
    return any(_sweep(connection, name, rule, now) for name, rule in _rules(connection))


def _rules(connection: Connection) -> list[tuple[str, RecordingRule]]:
    rows = connection.execute(select(DEPLOYMENTS.c.name, DEPLOYMENTS.c.recording)).all()
    return [(row.name, msgspec.json.decode(row.recording, type=RecordingRule)) for row in rows if row.recording]


def _sweep(connection: Connection, name: str, rule: RecordingRule, now: float) -> bool:
    over = select(TURNS.c.id).where(
        TURNS.c.deployment == name,
        TURNS.c.state == "kept",
        TURNS.c.created < now - rule.retention_days * DAY_SECONDS,
    )
    ids = connection.scalars(over.limit(AT_ONCE)).all()
    _expire(connection, name, ids)
    return bool(ids) or shrink(connection, name, rule) > 0 or _trim(connection, name)


def _expire(connection: Connection, deployment: str, ids: Sequence[str]) -> None:
    if not ids:
        return
    which = TURNS.c.id.in_(ids)
    n_bytes = connection.scalar(select(func.coalesce(func.sum(TURNS.c.n_bytes), 0)).where(which)) or 0
    connection.execute(delete(TURN_BODIES).where(TURN_BODIES.c.turn_id.in_(ids)))
    # Corrections and reasons are content as well.
    feedback_removal.remove(connection, FEEDBACK.c.target_id.in_(ids))
    connection.execute(update(TURNS).where(which).values(state="expired", user="", n_bytes=0))
    tally(connection, deployment, n_bytes=-n_bytes, expired=len(ids))
    episodes = connection.scalars(select(TURNS.c.episode).where(which).distinct()).all()
    still_kept = exists().where(TURNS.c.episode == EPISODES.c.number, TURNS.c.state == "kept")
    _forget_said(connection, EPISODES.c.number.in_(episodes) & ~still_kept)


def _trim(connection: Connection, deployment: str) -> bool:
    """Takes some of the oldest rows without content away, where there are too many; whether there were."""
    # A kept row counts as nothing here: quota and days bound those.
    traces = select(TURNS.c.number).where(TURNS.c.deployment == deployment, TURNS.c.state != "kept")
    first = connection.scalar(traces.order_by(TURNS.c.number.desc()).offset(MOST_TRACES).limit(1))
    if first is None:
        return False
    last = connection.scalar(traces.order_by(TURNS.c.number).offset(MOST_AT_ONCE).limit(1))
    last = first if last is None else min(first, last)
    remove(connection, (TURNS.c.deployment == deployment) & (TURNS.c.state != "kept") & (TURNS.c.number <= last))
    return True


def _remove_empty(connection: Connection, episodes: Sequence[int]) -> None:
    has_turns = exists().where(TURNS.c.episode == EPISODES.c.number)
    for start in range(0, len(episodes), AT_ONCE):
        empty = EPISODES.c.number.in_(episodes[start : start + AT_ONCE]) & ~has_turns
        _forget_said(connection, empty)
        connection.execute(delete(EPISODES).where(empty))


def _forget_said(connection: Connection, which: ColumnElement[bool]) -> None:
    """Deletes what was said of whole episodes."""
    about = FEEDBACK.c
    for row in connection.execute(select(EPISODES).where(which)).all():
        said = (about.target_id == row.id) & (about.deployment == row.deployment) & (about.level == "episode")
        feedback_removal.remove(connection, said & about.asker.in_(("", row.key_id)))
    connection.execute(update(EPISODES).where(which).values(heard=0))

"""Deployments: names that stand for weights, changed by appending a version, so that every change can be undone.

Names are unique in the store. Knows neither which bases are served nor who may change what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, delete, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from loreloop.protocol.errors import BadRequest, NotFound
from loreloop.protocol.paths import NAME, CheckpointKind, parse_path
from loreloop.protocol.sampling import Revision
from loreloop.store import checkpoints, keys, runs, turn_removal
from loreloop.store.feedback_tables import FEEDBACK_TABLES
from loreloop.store.files import in_row, placed
from loreloop.store.rows import DEPLOYMENT_SCOPE, FEEDBACK_SCOPE, Arm, Deployment, RecordingRule, Split
from loreloop.store.schema import DEPLOYED, DEPLOYMENT_VERSIONS, DEPLOYMENTS
from loreloop.store.turn_tables import PERSON_ARMS

NEW = DEPLOYMENTS.c
OLD = DEPLOYMENT_VERSIONS.c


class Owned(NamedTuple):
    """`key_id` is None for a bare base, which is everybody's."""

    arm: Arm
    key_id: str | None


def set(
    connection: Connection,
    name: str,
    key_id: str | None,
    split: Split,
    now: float,
    by: str,
    *,
    recording: RecordingRule | None = None,
) -> Deployment:
    """Adds a version, which is the current one from the commit on. `key_id` is heeded where there is no owner yet;
    what is recorded stays as it was unless `recording` is given."""
    check_name(name)
    found = find(connection, name)
    # Whoever may change a deployment does not take it over by doing so.
    owner = found.key_id if found and found.key_id else key_id
    made = Deployment(
        name=name,
        key_id=owner,
        version=found.version + 1 if found else 1,
        split=split,
        created=now,
        by=by,
        recording=recording or (found.recording if found else RecordingRule()),
    )
    recorded = msgspec.json.encode(made.recording).decode()
    row = {"key_id": owner, "version": made.version, "recording": recorded}
    connection.execute(upsert(DEPLOYMENTS).values(name=name, **row).on_conflict_do_update(["name"], set_=row))
    text = msgspec.json.encode(_mapped(split, in_row)).decode()
    connection.execute(
        insert(DEPLOYMENT_VERSIONS).values(name=name, version=made.version, split=text, created=now, by=by)
    )
    hold(connection, name, split)
    return made


def hold(connection: Connection, name: str, split: Split) -> None:
    """Keeps the checkpoints that a deployment answers with, be it to one person, from being deleted."""
    # Rewritten with each change: this table alone keeps checkpoints from being deleted while somebody is answered with
    # them.
    connection.execute(delete(DEPLOYED).where(DEPLOYED.c.name == name))
    held = {arm.target for arm in split.arms if arm.revision is not None}
    held |= {*connection.scalars(select(PERSON_ARMS.c.target).where(PERSON_ARMS.c.deployment == name))}
    if held:
        connection.execute(insert(DEPLOYED), [{"name": name, "target": target} for target in held])


def remove(connection: Connection, name: str) -> None:
    """The name, its history, its hold on checkpoints, what keys were allowed of it, and what it has recorded and was
    said of that, since the name may become another owner's."""
    current(connection, name)
    turn_removal.forget_deployment(connection, name)
    # Otherwise keys that were granted the old deployment could use a stranger's of the same name.
    for scope in (DEPLOYMENT_SCOPE, FEEDBACK_SCOPE):
        keys.withdraw(connection, scope + name)
    for table in (*FEEDBACK_TABLES, PERSON_ARMS):
        connection.execute(delete(table).where(table.c.deployment == name))
    for table in (DEPLOYED, DEPLOYMENT_VERSIONS, DEPLOYMENTS):
        connection.execute(delete(table).where(table.c.name == name))


def before(connection: Connection, name: str) -> Deployment:
    """The version before the current one."""
    newest = history(connection, name, 2)
    if len(newest) < 2:
        raise NotFound(f"The deployment {name!r} has had one version only; there is none to go back to.")
    return newest[1]


def rollback(connection: Connection, name: str, now: float, by: str) -> Deployment:
    """A new version that equals the one before the current; a second rollback undoes the first."""
    old = before(connection, name)
    # The old version held its checkpoints only while it was current, so they may be gone.
    check_there(connection, old.split)
    return set(connection, name, old.key_id, old.split, now, by)


def find(connection: Connection, name: str) -> Deployment | None:
    """The current version of a deployment, or None where no deployment has this name."""
    row = connection.execute(_currents().where(NEW.name == name)).first()
    return _row(connection, row) if row else None


def born(connection: Connection, name: str) -> float | None:
    """When the first version was made, in seconds since the epoch, which tells a deployment from a later one of its
    name; None where there is none."""
    first = select(OLD.created).where(OLD.name == name).order_by(OLD.version).limit(1)
    return connection.scalar(first)


def current(connection: Connection, name: str) -> Deployment:
    """Like `find`, but NotFound where no deployment has this name."""
    found = find(connection, name)
    if found is None:
        raise NotFound(f"There is no deployment {name!r}; `loreloop deploy list` shows them.")
    return found


def history(connection: Connection, name: str, limit: int) -> list[Deployment]:
    """Its versions, newest first."""
    current(connection, name)
    query = _versions().where(OLD.name == name, NEW.name == OLD.name)
    return [_row(connection, row) for row in connection.execute(query.order_by(OLD.version.desc()).limit(limit))]


def all(connection: Connection, limit: int, after: str = "") -> list[Deployment]:
    """The current versions of those whose names come after `after`, by name."""
    return _page(connection, NEW.name > after, limit)


def of_key(
    connection: Connection, key_id: str | None, granted: tuple[str, ...], limit: int, after: str = ""
) -> list[Deployment]:
    """Like `all`, for what a key may use: its own, everybody's, and those `granted`; with no `key_id` only the last."""
    # A query for each, because with an OR the database would sort all of them to find the first ones.
    wanted: list[ColumnElement[bool]] = [NEW.name.in_(granted)] if granted else []
    wanted += [NEW.key_id == key_id, NEW.key_id.is_(None)] if key_id is not None else []
    found = {row.name: row for which in wanted for row in _page(connection, which & (NEW.name > after), limit)}
    return [found[name] for name in sorted(found)][:limit]


def names_around(connection: Connection, key_id: str, name: str, limit: int) -> list[str]:
    """The names before and after a misspelt one in the alphabet, of this key and of everybody."""
    found: list[str] = []
    for ownership in (NEW.key_id == key_id, NEW.key_id.is_(None)):
        usable_names = select(NEW.name).where(ownership)
        found += connection.scalars(usable_names.where(NEW.name >= name).order_by(NEW.name).limit(limit))
        found += connection.scalars(usable_names.where(NEW.name < name).order_by(NEW.name.desc()).limit(limit))
    return found


def arm_of(connection: Connection, path: str) -> Owned:
    """A sampler checkpoint, whoever owns it, as something that answers."""
    parsed = parse_path(path)
    if parsed.kind is not CheckpointKind.SAMPLER:
        raise BadRequest(f"{path} cannot be sampled from; deploy a tinker://<run>/sampler_weights/<name> checkpoint.")
    checkpoint = checkpoints.of_anyone(connection, parsed)
    base_model = runs.get(connection, checkpoint.key_id, checkpoint.run_id).base_model
    return Owned(Arm(path, base_model, Revision(path, checkpoint.folder)), checkpoint.key_id)


def check_there(connection: Connection, split: Split) -> None:
    """NotFound rather than a deployment that cannot answer."""
    for arm in split.arms:
        if arm.revision is not None:
            arm_of(connection, arm.target)


def check_name(name: str) -> None:
    """BadRequest where a name could not stand in a path, as every deployment's name does."""
    if not NAME.fullmatch(name):
        raise BadRequest(
            f"A deployment cannot be called {name!r}: write 1 to 128 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit (no slashes)."
        )


def _versions() -> Select[tuple[object, ...]]:
    return select(OLD.name, NEW.key_id, OLD.version, OLD.split, OLD.created, OLD.by, NEW.recording)


def _currents() -> Select[tuple[object, ...]]:
    return _versions().where(NEW.name == OLD.name, NEW.version == OLD.version)


def _page(connection: Connection, which: ColumnElement[bool], limit: int) -> list[Deployment]:
    rows = connection.execute(_currents().where(which).order_by(NEW.name).limit(limit))
    return [_row(connection, row) for row in rows]


def _mapped(split: Split, change: Callable[[str], str]) -> Split:
    """The split with its folders changed."""
    canary = mapped_arm(split.canary, change) if split.canary else None
    return msgspec.structs.replace(split, main=mapped_arm(split.main, change), canary=canary)


def mapped_arm(arm: Arm, change: Callable[[str], str]) -> Arm:
    """The arm with its folder changed: rows hold other paths than this process."""
    if arm.revision is None:
        return arm
    return msgspec.structs.replace(arm, revision=Revision(arm.revision.revision_id, change(arm.revision.folder)))


def _row(connection: Connection, row: Row[tuple[object, ...]]) -> Deployment:
    written = msgspec.json.decode(row.split, type=Split)
    return Deployment(
        name=row.name,
        key_id=row.key_id,
        version=row.version,
        split=_mapped(written, lambda folder: placed(connection, folder)),
        created=row.created,
        by=row.by,
        recording=msgspec.json.decode(row.recording, type=RecordingRule) if row.recording else RecordingRule(),
    )

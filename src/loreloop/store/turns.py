"""Recorded turns: kept in batches, given out as a feed, marked, and noted as used. Knows no request.

A batch is one transaction, so that a killed server leaves whole turns and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from loreloop.protocol.episodes import Person, Turn, TurnPage
from loreloop.protocol.errors import NotFound
from loreloop.protocol.loop_rest import MarkTurn, UseTurns
from loreloop.protocol.token_ids import unpack_ids, unpack_logprobs
from loreloop.store.fates import fate_column
from loreloop.store.rows import RecordingRule
from loreloop.store.schema import DEPLOYMENTS
from loreloop.store.turn_bodies import NewTurn, unpacked
from loreloop.store.turn_removal import AT_ONCE, shrink, tally
from loreloop.store.turn_tables import DELETED_PERSONS, EPISODES, TURN_BODIES, TURN_TALLIES, TURN_USES, TURNS

MOST_OF_EPISODE = 1000
PAGE_BYTES = 8 << 20  # of stored bodies, several times as much in JSON


def keep(connection: Connection, batch: Sequence[NewTurn]) -> int:
    """Keeps turns, and how many of them were; those of persons who were deleted, and of deployments that are gone, are
    not. The oldest turns make room where a deployment is over its quota."""
    rules = {name: rule_of(connection, name) for name in {new.deployment for new in batch}}
    n_kept = 0
    for new in batch:
        # A deployment may have been deleted while its last turns waited; a new one of that name shall not get them.
        if rules[new.deployment] is None:
            continue
        is_kept = new.body is not None and not is_deleted(connection, Person(new.key_id, new.user))
        _insert(connection, new, new.body if is_kept else None)
        n_kept += is_kept
    for name, rule in rules.items():
        if rule is not None:
            shrink(connection, name, rule)
    return n_kept


def _insert(connection: Connection, new: NewTurn, body: bytes | None) -> None:
    n_bytes = len(body) if body is not None else 0
    row = {
        "id": new.id,
        "deployment": new.deployment,
        "episode": _episode(connection, new, counts=body is not None),
        "key_id": new.key_id,
        "user": new.user if body is not None else "",
        "created": new.created,
        "state": "dropped" if body is None else "kept",
        "arm": new.arm,
        "version": new.version,
        "revision": new.revision,
        "consent": new.consent,
        "side": new.side,
        "heard": 0,
        "candidate": None,
        "n_bytes": n_bytes,
    }
    connection.execute(insert(TURNS).values(row))
    if body is not None:
        connection.execute(insert(TURN_BODIES).values(turn_id=new.id, body=body))
    tally(connection, new.deployment, n_bytes=n_bytes, dropped=int(body is None))


def _episode(connection: Connection, new: NewTurn, *, counts: bool) -> int:
    """The number of the turn's episode, which is made with its first turn and mixed with the first of other weights."""
    weights = new.revision or new.base_model
    of_id = (EPISODES.c.deployment == new.deployment) & (EPISODES.c.key_id == new.key_id)
    of_id &= EPISODES.c.id == new.episode_id
    row = connection.execute(select(EPISODES.c.number, EPISODES.c.weights, EPISODES.c.mixed).where(of_id)).first()
    if row is None:
        values = {"id": new.episode_id, "deployment": new.deployment, "key_id": new.key_id}
        made = insert(EPISODES).values(**values, weights=weights, mixed=False, heard=0).returning(EPISODES.c.number)
        return int(connection.execute(made).scalar_one())
    # What was dropped is known to nobody, so it cannot spoil a comparison.
    if counts and row.weights != weights and not row.mixed:
        connection.execute(update(EPISODES).where(of_id).values(mixed=True))
        tally(connection, new.deployment, mixed=1)
    return int(row.number)


def rule_of(connection: Connection, deployment: str) -> RecordingRule | None:
    """What a deployment records; None where there is no such deployment."""
    row = connection.execute(select(DEPLOYMENTS.c.recording).where(DEPLOYMENTS.c.name == deployment)).first()
    if row is None:
        return None
    return msgspec.json.decode(row.recording, type=RecordingRule) if row.recording else RecordingRule()


def is_deleted(connection: Connection, person: Person) -> bool:
    """Whether this person was deleted: nothing of theirs is kept any more."""
    of_person = (DELETED_PERSONS.c.key_id == person.key_id) & (DELETED_PERSONS.c.user == person.user)
    return connection.scalar(select(DELETED_PERSONS.c.deleted).where(of_person)) is not None


def exists(connection: Connection, turn_id: str) -> str | None:
    """kept, expired or dropped; None for an id of which nothing is known."""
    state: str | None = connection.scalar(select(TURNS.c.state).where(TURNS.c.id == turn_id))
    return state


def find(connection: Connection, turn_id: str) -> Turn | None:
    """One turn, None where nothing is known of it."""
    row = connection.execute(_turns().where(TURNS.c.id == turn_id)).first()
    return turn_of(row) if row is not None else None


def episodes_called(connection: Connection, episode_id: str) -> list[Turn]:
    """The turns of all episodes with this id in their order, at most `MOST_OF_EPISODE`: clients choose ids, so several
    keys may have one."""
    turns = _turns().where(EPISODES.c.id == episode_id).order_by(TURNS.c.created, TURNS.c.id)
    return [turn_of(row) for row in connection.execute(turns.limit(MOST_OF_EPISODE))]


class Wanted(msgspec.Struct, frozen=True):
    """Which turns of a deployment a page shall hold."""

    deployment: str
    after: int = 0
    limit: int = 100
    fate: str | None = None
    user: str | None = None


def page(connection: Connection, wanted: Wanted) -> TurnPage:
    """The turns behind `after`, as many as are wanted or as fit into one answer."""
    query = _turns(with_body=False).where(TURNS.c.deployment == wanted.deployment, TURNS.c.number > wanted.after)
    if wanted.fate is not None:
        query = query.where(fate_column() == wanted.fate)
    if wanted.user is not None:
        query = query.where(TURNS.c.user == wanted.user)
    rows, n_bytes = list[int](), 0
    for row in connection.execute(query.order_by(TURNS.c.number).limit(wanted.limit)):
        # The first one goes out whatever its size: the feed must come to an end.
        n_bytes += row.n_bytes
        if rows and n_bytes > PAGE_BYTES:
            break
        rows.append(row.number)
    turns: list[Turn] = []
    for start in range(0, len(rows), AT_ONCE):
        some = _turns().where(TURNS.c.number.in_(rows[start : start + AT_ONCE])).order_by(TURNS.c.number)
        turns += [turn_of(row) for row in connection.execute(some)]
    return TurnPage(tuple(turns), turns[-1].number if turns else wanted.after)


def _turns(*, with_body: bool = True) -> Select[Any]:
    columns: list[ColumnElement[Any]] = [*TURNS.c, EPISODES.c.id.label("episode_id"), fate_column()]
    joined = TURNS.outerjoin(EPISODES, EPISODES.c.number == TURNS.c.episode)
    if with_body:
        columns.append(TURN_BODIES.c.body)
        joined = joined.outerjoin(TURN_BODIES, TURN_BODIES.c.turn_id == TURNS.c.id)
    return select(*columns).select_from(joined)


def turn_of(row: Row[Any], *, whole: bool = False) -> Turn:
    """A row as a turn. Without consent its content is left out, unless it is told `whole` to whom it belongs."""
    about = {
        "number": row.number,
        "id": row.id,
        "episode_id": row.episode_id or "",
        "deployment": row.deployment,
        "person": Person(row.key_id, row.user),
        "created": row.created,
        "revision": row.revision,
        "version": row.version,
        "arm": row.arm,
        "consent": row.consent,
        "side": row.side,
        "fate": row.fate,
        "candidate": row.candidate,
    }
    # A turn that nobody may learn from is told without what could be learned, whatever its reader looks at.
    if row.body is None or not (row.consent or whole):
        return Turn(**about, messages=(), answer={}, base_model="")
    body = unpacked(row.body)
    told = {name: getattr(body, name) for name in ("messages", "answer", "tools", "base_model", "temperature")}
    return Turn(
        **about,
        **told,
        prompt=tuple(unpack_ids(body.prompt).tolist()),
        tokens=tuple(unpack_ids(body.tokens).tolist()),
        logprobs=tuple(unpack_logprobs(body.logprobs).tolist()),
        finish_reason=body.finish_reason,
        latency_seconds=body.latency_seconds,
    )


def mark(connection: Connection, turn_id: str, marks: MarkTurn) -> Turn:
    """Changes what is said of a turn, and gives it a new place at the end of the feed, where readers notice."""
    given = {name: value for name, value in msgspec.structs.asdict(marks).items() if value is not None}
    if given:
        connection.execute(update(TURNS).where(TURNS.c.id == turn_id).values(given))
        names = [column.name for column in TURNS.c if column.name != "number"]
        again = select(*(TURNS.c[name] for name in names)).where(TURNS.c.id == turn_id)
        connection.execute(insert(TURNS).prefix_with("OR REPLACE").from_select(names, again))
    found = find(connection, turn_id)
    if found is None:
        raise NotFound(f"There is no turn {turn_id[:80]!r}.")
    return found


def hear(connection: Connection, turn_id: str, more: int = 1) -> None:
    """Feedback was given about a turn, or (-1) taken back; a turn without any waits."""
    connection.execute(update(TURNS).where(TURNS.c.id == turn_id).values(heard=TURNS.c.heard + more))


def hear_episode(connection: Connection, episode_number: int, more: int = 1) -> None:
    """The same about all turns of an episode, those that are still to come included."""
    connection.execute(
        update(EPISODES).where(EPISODES.c.number == episode_number).values(heard=EPISODES.c.heard + more)
    )


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


class Counts(msgspec.Struct, frozen=True):
    """What became of a deployment's turns. `fates` are of the rows that are there; the others are counted for ever."""

    fates: dict[str, int]
    n_bytes: int = 0
    expired: int = 0
    dropped: int = 0
    mixed_episodes: int = 0


def counts(connection: Connection, deployment: str) -> Counts:
    """The counts of a deployment, zeros where it has recorded nothing."""
    joined = TURNS.outerjoin(EPISODES, EPISODES.c.number == TURNS.c.episode)
    by_fate = select(fate_column(), func.count().label("n")).select_from(joined)
    rows = connection.execute(by_fate.where(TURNS.c.deployment == deployment).group_by("fate"))
    fates = {row.fate: row.n for row in rows}
    kept = connection.execute(select(TURN_TALLIES).where(TURN_TALLIES.c.deployment == deployment)).first()
    if kept is None:
        return Counts(fates)
    return Counts(fates, kept.n_bytes, kept.expired, kept.dropped, kept.mixed)

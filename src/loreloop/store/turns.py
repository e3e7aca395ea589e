"""Recorded turns as they are read: one, a feed, an episode, and how many there are of each fate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, func, select, update

from loreloop.protocol.episodes import Person, Turn, TurnPage
from loreloop.protocol.feedback import Level
from loreloop.protocol.token_ids import unpack_ids, unpack_logprobs
from loreloop.store.fates import fate_column
from loreloop.store.schema import DEPLOYMENTS
from loreloop.store.turn_bodies import unpacked
from loreloop.store.turn_tables import AT_ONCE, EPISODES, TURN_BODIES, TURN_TALLIES, TURNS

PAGE_BYTES = 8 << 20  # of stored bodies, several times as much in JSON


# Of an id that was issued: kept, on its way into the store, lost for want of room, gone with its time, or never kept.
State = Literal["kept", "pending", "dropped", "expired", "unrecorded"]
BEST_FIRST: tuple[State, ...] = ("kept", "expired", "dropped")  # an episode is what the best of its turns is


class Known(msgspec.Struct, frozen=True):
    """What is known of an id that was issued: a turn's (`inference`), or an episode's. `key_id` is that of the key
    which asked."""

    id: str
    level: Level
    deployment: str
    key_id: str
    state: State = "kept"
    user: str | None = None  # whose turn it is; None where that is not known, or it is an episode


def known(connection: Connection, id: str) -> list[Known]:
    """The turn of this id, or else all episodes of this id, which clients choose; nothing where that is none."""
    turn = connection.execute(select(TURNS).where(TURNS.c.id == id)).first()
    if turn is not None:
        whose = {"key_id": turn.key_id, "user": turn.user if turn.state == "kept" else None}
        return [Known(id=id, level="inference", deployment=turn.deployment, state=turn.state, **whose)]
    found = []
    newest_first = select(EPISODES).where(EPISODES.c.id == id).order_by(EPISODES.c.number.desc())
    for row in connection.execute(newest_first).all():
        states = {*connection.scalars(select(TURNS.c.state).where(TURNS.c.episode == row.number).distinct())}
        best: State = next((each for each in BEST_FIRST if each in states), "expired")
        found.append(Known(id=id, level="episode", deployment=row.deployment, key_id=row.key_id, state=best))
    return found


def find(connection: Connection, turn_id: str) -> Turn | None:
    """One turn, None where nothing is known of it."""
    row = connection.execute(all_turns().where(TURNS.c.id == turn_id)).first()
    return turn_of(row) if row is not None else None


class Wanted(msgspec.Struct, frozen=True):
    """Which turns of a deployment a page shall hold."""

    deployment: str
    after: int = 0
    limit: int = 100
    fate: str | None = None
    user: str | None = None


def page(connection: Connection, wanted: Wanted) -> TurnPage:
    """The turns behind `after`, as many as are wanted or as fit into one answer."""
    which = [TURNS.c.deployment == wanted.deployment]
    if wanted.fate is not None:
        which.append(fate_column() == wanted.fate)
    if wanted.user is not None:
        which.append(TURNS.c.user == wanted.user)
    return page_of(connection, which, wanted.after, wanted.limit)


class Reader(msgspec.Struct, frozen=True):
    """Which turns a key may read: those that it asked for, with `owns` those of its deployments, with `reads_all`
    everybody's."""

    key_id: str
    owns: bool = False
    reads_all: bool = False


def episode_page(connection: Connection, episode_id: str, reader: Reader, after: int, limit: int) -> TurnPage:
    """The turns of all episodes with this id that somebody may read, in the order of time within a page. Clients choose
    ids, so several keys may have one."""
    which = [EPISODES.c.id == episode_id]
    # The database leaves the others out, since they could fill any bound before the reader's own come.
    if not reader.reads_all:
        owned = select(DEPLOYMENTS.c.name).where(DEPLOYMENTS.c.key_id == reader.key_id)
        own = TURNS.c.key_id == reader.key_id
        which.append(own | TURNS.c.deployment.in_(owned) if reader.owns else own)
    found = page_of(connection, which, after, limit)
    in_order = sorted(found.turns, key=lambda turn: (turn.created, turn.id))
    return TurnPage(tuple(in_order), found.next)


def page_of(
    connection: Connection, which: Sequence[ColumnElement[bool]], after: int, limit: int, *, whole: bool = False
) -> TurnPage:
    """Some turns behind a number, as many as fit into one answer: a page is bounded in bytes. `whole` as in
    `turn_of`."""
    query = all_turns(with_body=False).where(*which, TURNS.c.number > after)
    rows, n_bytes = list[int](), 0
    for row in connection.execute(query.order_by(TURNS.c.number).limit(limit)):
        # The first one goes out whatever its size: the feed must come to an end.
        n_bytes += row.n_bytes
        if rows and n_bytes > PAGE_BYTES:
            break
        rows.append(row.number)
    turns: list[Turn] = []
    for start in range(0, len(rows), AT_ONCE):
        some = all_turns().where(TURNS.c.number.in_(rows[start : start + AT_ONCE])).order_by(TURNS.c.number)
        turns += [turn_of(row, whole=whole) for row in connection.execute(some)]
    return TurnPage(tuple(turns), turns[-1].number if turns else after)


def all_turns(*, with_body: bool = True) -> Select[Any]:
    """The rows that `turn_of` reads, of every deployment."""
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


def hear(connection: Connection, turn_id: str, *, is_heard: bool) -> None:
    """Says whether feedback on a turn stands; a turn without any waits."""
    connection.execute(update(TURNS).where(TURNS.c.id == turn_id).values(heard=int(is_heard)))


def hear_episode(connection: Connection, number: int, *, is_heard: bool) -> None:
    """The same of all turns of an episode, those that are still to come included."""
    connection.execute(update(EPISODES).where(EPISODES.c.number == number).values(heard=int(is_heard)))


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

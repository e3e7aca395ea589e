"""What was said of answers: statements in the order in which they came, with what overrides what, and retractions.

A statement is one row, whose number is its place in the feed. Knows neither turns nor who may say what.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
from sqlalchemy import ColumnElement, Connection, LargeBinary, Row, and_, cast, delete, func, insert, literal, select

from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import Conflict, NotFound
from loreloop.protocol.feedback import PREFERENCE, Feedback, FeedbackPage, Level
from loreloop.protocol.feedback_rules import check_override, same_voice
from loreloop.store import deleted, turns
from loreloop.store.feedback_tables import FEEDBACK
from loreloop.store.turn_tables import EPISODES

AT = FEEDBACK.c
ROW_BYTES = 500  # of a statement beside its texts: ids, names, indexes
PAGE_BYTES = 8 << 20  # of the texts of a page
MAX_NAMED = 500  # ids in one query: SQLite's own bound on parameters is not far above


class Asked(msgspec.Struct, frozen=True):
    """A statement as it was sent. `chosen`: its id is the client's own; `may_all`: it may override anybody's; `persons`
    are all that it is of or about."""

    said: Feedback
    chosen: bool = False
    may_all: bool = False
    persons: tuple[Person, ...] = ()


def give(connection: Connection, asked: Asked) -> Feedback:
    """Keeps a statement, and gives it as it stands: with its id, its number and what it overrides.

    The same id with the same contents changes nothing, whenever it comes, and neither does a voice that repeats what it
    says already. An id that another giver has taken is kept apart from that one's. Conflict for an id under which this
    giver has said something else; BadRequest for an override that is none; Gone
    where one of its persons was deleted, also in the moment before.
    """
    deleted.check_none(connection, asked.persons)
    said, fingerprint = asked.said, fingerprint_of(asked.said)
    taken = _of_giver(connection, said.giver, said.id)
    if taken is not None:
        if taken.fingerprint != fingerprint:
            raise Conflict(
                f"The id {said.id!r} stands for other feedback. A retry sends the same body again; for something new "
                "choose a new id, such as a UUID."
            )
        return statement_of(taken)
    if find(connection, said.id) is not None:
        said = msgspec.structs.replace(said, id=_apart(said.giver, said.id))
    own = _newest_of_voice(connection, said)
    if own and not asked.chosen and own.fingerprint == fingerprint and counts(connection, own.id):
        return statement_of(own)
    overridden, replaced = (own.id, target_of(own)) if own else (None, target_of(said))
    if said.overrides is not None:
        old = find_own(connection, said.giver, said.overrides) or find(connection, said.overrides)
        stands = old is not None and counts(connection, old.id)
        check_override(said, old, counts=stands, may_all=asked.may_all)
        if old is not None and not same_voice(said, old):
            overridden, replaced = old.id, target_of(old)
            # A statement names one other only, so what this voice had said before is taken back beside.
            if own is not None:
                retract(connection, own.id)
    given = _insert(connection, msgspec.structs.replace(said, overrides=overridden), fingerprint)
    if replaced.id != said.target_id:  # who prefers the other one of two now has nothing more to say of the first
        tell(connection, replaced)
    return given


def retract(connection: Connection, id: str) -> Feedback:
    """Takes a statement back; it then comes in the feed once more. What it overrode does not count again: whoever has
    changed an opinion and takes that back has none. Done twice it is as done once. NotFound for an unknown id."""
    row = connection.execute(select(FEEDBACK).where(AT.id == id)).first()
    if row is None:
        raise not_found(id)
    if row.retracted:
        return statement_of(row)
    # Numbers are given by the table and never twice, so that a reader of the feed meets the retraction behind all that
    # it has read.
    connection.execute(delete(FEEDBACK).where(AT.id == id))
    return _insert(connection, msgspec.structs.replace(statement_of(row), retracted=True), row.fingerprint)


def find(connection: Connection, id: str) -> Feedback | None:
    """A statement by its id, retracted or not."""
    row = connection.execute(select(FEEDBACK).where(AT.id == id)).first()
    return statement_of(row) if row else None


def find_own(connection: Connection, giver: str, id: str) -> Feedback | None:
    """The statement that a giver knows by this id, retracted or not, whatever others have under it."""
    row = _of_giver(connection, giver, id)
    return statement_of(row) if row else None


def counts(connection: Connection, id: str) -> bool:
    """Whether a statement is neither retracted nor overridden."""
    row = connection.execute(select(AT.retracted).where(AT.id == id)).first()
    overridden = connection.execute(select(AT.number).where(AT.overrides == id).limit(1)).first()
    return row is not None and not row.retracted and overridden is None


def page(connection: Connection, deployment: str, after: int, limit: int) -> FeedbackPage:
    """Statements about the answers of a deployment whose numbers come after `after`, in the order of these; fewer than
    `limit` where they are long."""
    query = select(FEEDBACK).where(AT.deployment == deployment, AT.number > after).order_by(AT.number).limit(limit)
    found, n_bytes = list[Feedback](), 0
    for row in connection.execute(query):
        # The first one goes out whatever its size: the feed must come to an end.
        n_bytes += len(row.value) + len(row.why) + len(row.tags)
        if found and n_bytes > PAGE_BYTES:
            break
        found.append(statement_of(row))
    return FeedbackPage(tuple(found), found[-1].number if found else after)


def about(connection: Connection, target_ids: Sequence[str]) -> list[Feedback]:
    """All that was said about these turns and episodes, in the order of the numbers."""
    found: list[Feedback] = []
    for start in range(0, len(target_ids), MAX_NAMED):
        named = select(FEEDBACK).where(AT.target_id.in_(target_ids[start : start + MAX_NAMED]))
        found += [statement_of(row) for row in connection.execute(named)]
    return sorted(found, key=lambda one: one.number)


def n_given(connection: Connection, giver: str, who: str | None, most: int) -> int:
    """How many statements there are of a giver, or of one person that it speaks for; counted up to `most`."""
    kept = select(AT.number).where(AT.giver == giver, *((AT.who == who,) if who is not None else ())).limit(most)
    return connection.scalar(select(func.count()).select_from(kept.subquery())) or 0


class Kept(msgspec.Struct, frozen=True):
    """How much is kept, with all that was overridden or retracted."""

    statements: int = 0
    n_bytes: int = 0


def kept_of(connection: Connection, deployment: str, giver: str | None = None, target_id: str | None = None) -> Kept:
    """How much there is about a deployment's answers, of one giver or about one target alone if they are given."""
    about = [AT.giver == giver] if giver is not None else []
    if target_id is None:
        about.append(AT.deployment == deployment)
    else:
        about += [AT.target_id == target_id, AT.deployment.concat("") == deployment]
    texts = (AT.value, AT.why, AT.tags, AT.who)
    n_bytes = sum((func.length(cast(text, LargeBinary)) for text in texts), start=literal(ROW_BYTES))
    row = connection.execute(select(func.count(), func.coalesce(func.sum(n_bytes), 0)).where(*about)).one()
    return Kept(*row)


def n_bytes_of(said: Feedback) -> int:
    """How many bytes a statement takes, about."""
    texts = (_json(said.value), said.why, _json(said.tags), said.who)
    return ROW_BYTES + sum(len(text.encode()) for text in texts)


def not_found(id: str) -> NotFound:
    """The refusal for an id that is no statement's, or one of another key."""
    return NotFound(f"There is no feedback {id[:128]!r} that this key may see.")


def fingerprint_of(said: Feedback) -> str:
    """What tells a repeated statement from another one under the same id."""
    told = (said.giver, said.source, said.who, said.target_id, said.metric, said.value, said.why, said.tags)
    return hashlib.sha256(msgspec.json.encode((*told, said.overrides), order="sorted")).hexdigest()


class Target(msgspec.Struct, frozen=True):
    """What statements are about; `asker` is the id of the key whose answer it is, empty for statements older than its
    record."""

    id: str
    level: Level
    deployment: str
    asker: str

    def statements(self) -> ColumnElement[bool]:
        """Those about it. A stranger's episode may have the same id."""
        # Behind an expression, so that the database looks by the target and not through all that a deployment has
        # heard.
        there = and_(AT.target_id == self.id, AT.level == self.level, AT.deployment.concat("") == self.deployment)
        return there & AT.asker.in_(("", self.asker))


def is_heard(connection: Connection, target: Target) -> bool:
    """Whether a statement about a turn or an episode stands: neither retracted nor overridden."""
    newer = FEEDBACK.alias()
    # What was overridden does not count again, also where that which overrode it was retracted.
    overridden = select(newer.c.number).where(newer.c.overrides == AT.id).exists()
    standing = select(AT.number).where(target.statements(), AT.retracted.is_(False), ~overridden)
    return connection.execute(standing.limit(1)).first() is not None


def tell(connection: Connection, target: Target, *, is_heard_now: bool = False) -> None:
    """Has the turn, or the episode, know whether anything that was said of it stands: its fate depends on that. What
    was said just now stands, and nobody needs to look."""
    if target.level == "inference":
        turns.hear(connection, target.id, is_heard=is_heard_now or is_heard(connection, target))
        return
    about = [EPISODES.c.id == target.id, EPISODES.c.deployment == target.deployment]
    if target.asker:
        about.append(EPISODES.c.key_id == target.asker)
    for number, key_id in connection.execute(select(EPISODES.c.number, EPISODES.c.key_id).where(*about)).all():
        own = msgspec.structs.replace(target, asker=key_id)
        turns.hear_episode(connection, number, is_heard=is_heard_now or is_heard(connection, own))


def target_of(said: Feedback | Row[tuple[object, ...]]) -> Target:
    """What a statement is about."""
    return Target(said.target_id, said.level, said.deployment, said.asker)


def _of_giver(connection: Connection, giver: str, id: str) -> Row[tuple[object, ...]] | None:
    of_giver = select(FEEDBACK).where(AT.id.in_((id, _apart(giver, id))), AT.giver == giver)
    return connection.execute(of_giver).first()


def _apart(giver: str, id: str) -> str:
    """Another id for a giver's statement, where somebody else has its own; clients choose none with an @."""
    return f"{id}@{hashlib.sha256(giver.encode(errors='surrogatepass')).hexdigest()[:12]}"


def _newest_of_voice(connection: Connection, said: Feedback) -> Row[tuple[object, ...]] | None:
    """The last that this voice has said about the target and the metric, and not taken back."""
    voice = (AT.giver == said.giver, AT.source == said.source, AT.who == said.who)
    subjects: list[tuple[ColumnElement[bool], ...]] = [(AT.target_id == said.target_id,)]
    if said.metric == PREFERENCE:
        # One answer may be better than several others; and who then prefers the other one of the two has changed sides.
        better, worse = (msgspec.json.encode(id).decode() for id in (said.target_id, said.value))
        subjects = [(*subjects[0], AT.value == worse), (AT.target_id == said.value, AT.value == better)]
    stands = select(FEEDBACK).where(*voice, AT.metric == said.metric, AT.deployment == said.deployment)
    stands = stands.where(AT.level == said.level, AT.asker.in_(("", said.asker)))
    stands = stands.where(AT.retracted.is_(False)).order_by(AT.number.desc()).limit(1)
    # One query for each way round: no index serves both at once.
    found = [row for about in subjects if (row := connection.execute(stands.where(*about)).first()) is not None]
    return max(found, key=lambda row: int(row.number), default=None)


def _insert(connection: Connection, said: Feedback, fingerprint: str) -> Feedback:
    values = {name: getattr(said, name) for name in msgspec.structs.asdict(said) if name != "number"}
    values |= {"value": _json(said.value), "tags": _json(said.tags)}
    done = connection.execute(insert(FEEDBACK).values(**values, fingerprint=fingerprint))
    assert done.inserted_primary_key is not None
    tell(connection, target_of(said), is_heard_now=not said.retracted)
    return msgspec.structs.replace(said, number=int(done.inserted_primary_key[0]))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def statement_of(row: Row[tuple[object, ...]]) -> Feedback:
    """A row as a statement."""
    return Feedback(
        number=row.number,
        id=row.id,
        metric=row.metric,
        level=row.level,
        target_id=row.target_id,
        deployment=row.deployment,
        asker=row.asker,
        value=msgspec.json.decode(row.value),
        created=row.created,
        source=row.source,
        who=row.who,
        giver=row.giver,
        why=row.why,
        tags=msgspec.json.decode(row.tags),
        overrides=row.overrides,
        retracted=row.retracted,
    )

"""What was said of answers: statements in the order in which they came, with what overrides what, and retractions.

A statement is one row, whose number is its place in the feed. Knows neither turns nor who may say what.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, and_, delete, false, func, insert, or_, select

from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import Conflict, NotFound
from loreloop.protocol.feedback import OF_PERSONS, PREFERENCE, Feedback, FeedbackPage, Level
from loreloop.protocol.feedback_rules import check_override, same_voice
from loreloop.store import deleted, turns
from loreloop.store.feedback_tables import FEEDBACK
from loreloop.store.turn_tables import EPISODES, TURNS

AT = FEEDBACK.c
CHANNELS = ("browser", "link")  # by which statements come in a key's name, beside the key itself
MAX_NAMED = 500  # ids in one query: SQLite's own bound on parameters is not far above


class Asked(msgspec.Struct, frozen=True):
    """A statement as it was sent. `chosen`: its id is the client's own; `may_all`: it may override anybody's; `persons`
    are all that it is of or about."""

    said: Feedback
    chosen: bool = False
    may_all: bool = False
    persons: tuple[Person, ...] = ()


def give(connection: Connection, asked: Asked) -> Feedback:
    """Keeps a statement, and gives it as it stands: with its number and what it overrides.

    The same id with the same contents changes nothing, whenever it comes, and neither does a voice that repeats what it
    says already. Conflict for an id that is taken by something else; BadRequest for an override that is none; Gone
    where one of its persons was deleted, also in the moment before.
    """
    deleted.check_none(connection, asked.persons)
    said, fingerprint = asked.said, fingerprint_of(asked.said)
    taken = connection.execute(select(FEEDBACK).where(AT.id == said.id)).first()
    if taken is not None:
        if taken.fingerprint != fingerprint:
            raise Conflict(
                f"The id {said.id!r} stands for other feedback. A retry sends the same body again; for something new "
                "choose a new id, such as a UUID."
            )
        return _feedback(taken)
    own = _newest_of_voice(connection, said)
    if own and not asked.chosen and own.fingerprint == fingerprint and counts(connection, own.id):
        return _feedback(own)
    overridden, replaced = (own.id, own.target_id) if own else (None, said.target_id)
    if said.overrides is not None:
        old = find(connection, said.overrides)
        stands = old is not None and counts(connection, old.id)
        check_override(said, old, counts=stands, may_all=asked.may_all)
        if old is not None and not same_voice(said, old):
            overridden, replaced = old.id, old.target_id
            # A statement names one other only, so what this voice had said before is taken back beside.
            if own is not None:
                retract(connection, own.id)
    given = _insert(connection, msgspec.structs.replace(said, overrides=overridden), fingerprint)
    if replaced != said.target_id:  # who prefers the other one of two now has nothing more to say of the first
        _tell(connection, said.level, replaced, said.deployment)
    return given


def retract(connection: Connection, id: str) -> Feedback:
    """Takes a statement back; it then comes in the feed once more. What it overrode does not count again: whoever has
    changed an opinion and takes that back has none. Done twice it is as done once. NotFound for an unknown id."""
    row = connection.execute(select(FEEDBACK).where(AT.id == id)).first()
    if row is None:
        raise not_found(id)
    if row.retracted:
        return _feedback(row)
    # Numbers are given by the table and never twice, so that a reader of the feed meets the retraction behind all that
    # it has read.
    connection.execute(delete(FEEDBACK).where(AT.id == id))
    return _insert(connection, msgspec.structs.replace(_feedback(row), retracted=True), row.fingerprint)


def find(connection: Connection, id: str) -> Feedback | None:
    """A statement by its id, retracted or not."""
    row = connection.execute(select(FEEDBACK).where(AT.id == id)).first()
    return _feedback(row) if row else None


def counts(connection: Connection, id: str) -> bool:
    """Whether a statement is neither retracted nor overridden."""
    row = connection.execute(select(AT.retracted).where(AT.id == id)).first()
    overridden = connection.execute(select(AT.number).where(AT.overrides == id).limit(1)).first()
    return row is not None and not row.retracted and overridden is None


def page(connection: Connection, deployment: str, after: int, limit: int) -> FeedbackPage:
    """Statements about the answers of a deployment whose numbers come after `after`, in the order of these."""
    query = select(FEEDBACK).where(AT.deployment == deployment, AT.number > after).order_by(AT.number).limit(limit)
    found = tuple(_feedback(row) for row in connection.execute(query))
    return FeedbackPage(found, found[-1].number if found else after)


def about(connection: Connection, target_ids: Sequence[str]) -> list[Feedback]:
    """All that was said about these turns and episodes, in the order of the numbers."""
    found: list[Feedback] = []
    for start in range(0, len(target_ids), MAX_NAMED):
        named = select(FEEDBACK).where(AT.target_id.in_(target_ids[start : start + MAX_NAMED]))
        found += [_feedback(row) for row in connection.execute(named)]
    return sorted(found, key=lambda one: one.number)


def of_person(connection: Connection, person: Person, after: int, most: int) -> FeedbackPage:
    """What a person has said, and what was said of their turns, behind a number; at most so many, in the order of the
    numbers."""
    query = select(FEEDBACK).where(or_(_by(person), _on(person)), AT.number > after).order_by(AT.number).limit(most)
    found = tuple(_feedback(row) for row in connection.execute(query))
    return FeedbackPage(found, found[-1].number if found else after)


def forget_targets(connection: Connection, person: Person) -> int:
    """Deletes what a person has said, of others' turns too, and what was said of theirs; how many statements. To be
    called while the turns are there."""
    place = select(AT.level, AT.target_id, AT.deployment).distinct()
    overridden = AT.id.in_(select(AT.overrides).where(_by(person)))
    places = connection.execute(place.where(_by(person)).union(place.where(overridden))).all()
    n_gone = connection.execute(delete(FEEDBACK).where(or_(_by(person), _on(person)))).rowcount
    # Without these words the turns of others may have none that speaks of them.
    for level, target_id, deployment in places:
        _tell(connection, level, target_id, deployment)
    return n_gone


def forget_target(connection: Connection, turn_id: str) -> None:
    """Deletes what was said of a turn that is not kept."""
    connection.execute(delete(FEEDBACK).where(AT.target_id == turn_id))


def _by(person: Person) -> ColumnElement[bool]:
    """Statements that name the person, by the person's key or about what it was answered: names are a key's own. Code
    and judges sign with names as well, which are no persons'."""
    if not person.user:
        return false()
    # A key's givers are its id, and that with a channel.
    givers = (person.key_id, *(f"{person.key_id}/{channel}" for channel in CHANNELS))
    turns_of_key = select(TURNS.c.id).where(TURNS.c.key_id == person.key_id)
    episodes_of_key = select(EPISODES.c.id).where(EPISODES.c.key_id == person.key_id)
    answered = or_(AT.target_id.in_(turns_of_key), AT.target_id.in_(episodes_of_key))
    return and_(AT.who == person.user, AT.source.in_(OF_PERSONS), or_(AT.giver.in_(givers), answered))


def _on(person: Person) -> ColumnElement[bool]:
    whose = (TURNS.c.key_id == person.key_id) & (TURNS.c.user == person.user)
    return AT.target_id.in_(select(TURNS.c.id).where(whose))


def n_given(connection: Connection, giver: str, who: str | None, most: int) -> int:
    """How many statements there are of a giver, or of one person that it speaks for; counted up to `most`."""
    kept = select(AT.number).where(AT.giver == giver, *((AT.who == who,) if who is not None else ())).limit(most)
    return connection.scalar(select(func.count()).select_from(kept.subquery())) or 0


def sweep_orphans(connection: Connection, after: int, before: float, most: int) -> int:
    """Deletes statements about turns and episodes that nobody has kept: a process was killed with them on their way.

    Looks at `most` statements behind the number `after` that were given `before` then, in seconds since the epoch, and
    says behind which number to go on.
    """
    young = select(func.min(AT.number)).where(AT.number > after, AT.created >= before).scalar_subquery()
    numbers = select(AT.number).where(AT.number > after, AT.number < func.coalesce(young, 1 << 62))
    looked_at = [*connection.scalars(numbers.order_by(AT.number).limit(most))]
    if not looked_at:
        return after
    has_turn = select(TURNS.c.id).where(TURNS.c.id == AT.target_id).exists()
    has_episode = select(EPISODES.c.id).where(EPISODES.c.id == AT.target_id).exists()
    some = (AT.number > after, AT.number <= looked_at[-1])
    connection.execute(delete(FEEDBACK).where(*some, ~has_turn, ~has_episode))
    return looked_at[-1]


def not_found(id: str) -> NotFound:
    """The refusal for an id that is no statement's, or one of another key."""
    return NotFound(f"There is no feedback {id[:128]!r} that this key may see.")


def fingerprint_of(said: Feedback) -> str:
    """What tells a repeated statement from another one under the same id."""
    told = (said.giver, said.source, said.who, said.target_id, said.metric, said.value, said.why, said.tags)
    return hashlib.sha256(msgspec.json.encode((*told, said.overrides), order="sorted")).hexdigest()


def is_heard(connection: Connection, target_id: str, level: Level, deployment: str) -> bool:
    """Whether a statement about a turn or an episode stands: neither retracted nor overridden."""
    # Behind an expression, so that the database looks by the target and not through all that a deployment has heard.
    of_deployment = AT.deployment.concat("") == deployment
    about = (AT.target_id == target_id, AT.level == level, of_deployment, AT.retracted.is_(False))
    newer = FEEDBACK.alias()
    # What was overridden does not count again, also where that which overrode it was retracted.
    overridden = select(newer.c.number).where(newer.c.overrides == AT.id).exists()
    return connection.execute(select(AT.number).where(*about, ~overridden).limit(1)).first() is not None


def _tell(connection: Connection, level: Level, target_id: str, deployment: str, *, is_heard_now: bool = False) -> None:
    """Has the turn, or the episode, know whether anything that was said of it stands: its fate depends on that. What
    was said just now stands, and nobody needs to look."""
    heard = is_heard_now or is_heard(connection, target_id, level, deployment)
    if level == "inference":
        turns.hear(connection, target_id, is_heard=heard)
    else:
        turns.hear_episode(connection, target_id, deployment, is_heard=heard)


def _newest_of_voice(connection: Connection, said: Feedback) -> Row[tuple[object, ...]] | None:
    """The last that this voice has said about the target and the metric, and not taken back."""
    voice = (AT.giver == said.giver, AT.source == said.source, AT.who == said.who)
    subjects: list[tuple[ColumnElement[bool], ...]] = [(AT.target_id == said.target_id,)]
    if said.metric == PREFERENCE:
        # One answer may be better than several others; and who then prefers the other one of the two has changed sides.
        better, worse = (msgspec.json.encode(id).decode() for id in (said.target_id, said.value))
        subjects = [(*subjects[0], AT.value == worse), (AT.target_id == said.value, AT.value == better)]
    stands = select(FEEDBACK).where(*voice, AT.metric == said.metric, AT.deployment == said.deployment)
    stands = stands.where(AT.retracted.is_(False)).order_by(AT.number.desc()).limit(1)
    # One query for each way round: no index serves both at once.
    found = [row for about in subjects if (row := connection.execute(stands.where(*about)).first()) is not None]
    return max(found, key=lambda row: int(row.number), default=None)


def _insert(connection: Connection, said: Feedback, fingerprint: str) -> Feedback:
    values = {name: getattr(said, name) for name in msgspec.structs.asdict(said) if name != "number"}
    values |= {"value": msgspec.json.encode(said.value).decode(), "tags": msgspec.json.encode(said.tags).decode()}
    done = connection.execute(insert(FEEDBACK).values(**values, fingerprint=fingerprint))
    assert done.inserted_primary_key is not None
    _tell(connection, said.level, said.target_id, said.deployment, is_heard_now=not said.retracted)
    return msgspec.structs.replace(said, number=int(done.inserted_primary_key[0]))


def _feedback(row: Row[tuple[object, ...]]) -> Feedback:
    return Feedback(
        number=row.number,
        id=row.id,
        metric=row.metric,
        level=row.level,
        target_id=row.target_id,
        deployment=row.deployment,
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

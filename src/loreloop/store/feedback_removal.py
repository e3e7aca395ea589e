"""How statements go: with the person who said them or was answered, with a turn that is not kept, and where nothing is
left that they are about. With turns and episodes that have their time they go in `turn_removal.py`.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, false, func, or_, select

from loreloop.protocol.episodes import Person
from loreloop.protocol.feedback import CHANNELS, OF_PERSONS, OPERATOR, FeedbackPage
from loreloop.store.feedback import Target, statement_of, tell
from loreloop.store.feedback_tables import FEEDBACK
from loreloop.store.turn_tables import EPISODES, TURNS

AT = FEEDBACK.c


def of_person(connection: Connection, person: Person, after: int, most: int) -> FeedbackPage:
    """What a person has said, and what was said of their turns and episodes, behind a number; at most so many, in the
    order of the numbers."""
    query = select(FEEDBACK).where(or_(_by(person), _on(person)), AT.number > after).order_by(AT.number).limit(most)
    found = tuple(statement_of(row) for row in connection.execute(query))
    return FeedbackPage(found, found[-1].number if found else after)


def forget_person(connection: Connection, person: Person) -> int:
    """Deletes what a person has said, of others' turns too, and what was said of their turns and episodes; how many
    statements. What operators said of others' turns stays. To be called while the turns are there."""
    both = or_(_deleted_by(person), _on(person))
    # Without these words the turns of others may have none that speaks of them.
    places = select(AT.target_id, AT.level, AT.deployment, AT.asker).distinct().where(both)
    told = [Target(*row) for row in connection.execute(places)]
    n_gone = remove(connection, both)
    for target in told:
        tell(connection, target)
    return n_gone


def remove(connection: Connection, which: ColumnElement[bool]) -> int:
    """Deletes statements; how many. What they overrode counts again, as if they had never been made, and where that is
    about another turn, as the first word of whoever preferred the one of two answers and then the other one, that turn
    hears of it."""
    named = select(AT.overrides).where(which, AT.overrides.is_not(None))
    other = select(AT.target_id, AT.level, AT.deployment, AT.asker).distinct().where(AT.id.in_(named))
    told = [Target(*row) for row in connection.execute(other)]
    n_gone = connection.execute(delete(FEEDBACK).where(which)).rowcount
    for target in told:
        tell(connection, target)
    return n_gone


def forget_target(connection: Connection, target: Target) -> None:
    """Deletes what was said of a turn, or an episode, that is not kept."""
    remove(connection, target.statements())


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
    has_turn = exists().where(TURNS.c.id == AT.target_id)
    of_asker = or_(AT.asker == "", EPISODES.c.key_id == AT.asker)
    has_episode = exists().where(EPISODES.c.id == AT.target_id, EPISODES.c.deployment == AT.deployment, of_asker)
    some = (AT.number > after, AT.number <= looked_at[-1])
    remove(connection, and_(*some, ~has_turn, ~has_episode))
    return looked_at[-1]


def _by(person: Person) -> ColumnElement[bool]:
    """Statements that name the person, by the person's key or about what it was answered: names are a key's own. Code
    and judges sign with names as well, which are no persons'."""
    if not person.user:
        return false()
    # A key's givers are its id, and that with a channel.
    givers = (person.key_id, *(f"{person.key_id}/{channel}" for channel in CHANNELS))
    turns_of_key = select(TURNS.c.id).where(TURNS.c.key_id == person.key_id)
    episodes_of_key = select(EPISODES.c.id).where(EPISODES.c.key_id == person.key_id)
    on_episode = AT.target_id.in_(episodes_of_key) & AT.asker.in_(("", person.key_id))
    answered = or_(AT.target_id.in_(turns_of_key), on_episode)
    return and_(AT.who == person.user, AT.source.in_(OF_PERSONS), or_(AT.giver.in_(givers), answered))


def _deleted_by(person: Person) -> ColumnElement[bool]:
    """Of these, the ones that go with the person. An operator signs with the name of a shell user, which any key may
    say that a person of its has: what operators said of others' turns stays, or the labels would be anybody's to
    delete."""
    return _by(person) & ~AT.giver.startswith(OPERATOR, autoescape=True)


def _on(person: Person) -> ColumnElement[bool]:
    """Statements about the person's turns, and about episodes with such turns: whoever speaks of a whole chat speaks of
    each who was in it."""
    whose = (TURNS.c.key_id == person.key_id) & (TURNS.c.user == person.user)
    episodes = select(EPISODES.c.id).join(TURNS, TURNS.c.episode == EPISODES.c.number).where(whose)
    on_episode = (AT.level == "episode") & AT.target_id.in_(episodes) & AT.asker.in_(("", person.key_id))
    return or_(AT.target_id.in_(select(TURNS.c.id).where(whose)), on_episode)

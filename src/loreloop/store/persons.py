"""A person's own: everything that is kept of one user of a key, given out or deleted.

A person who was deleted is remembered as such, so that no turn is kept of them again and no loop trains on what it may
still hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, delete, func, select

from loreloop.protocol.episodes import Person, TurnPage
from loreloop.protocol.errors import BadRequest, TooLarge
from loreloop.protocol.feedback import FeedbackPage
from loreloop.store import deleted, feedback_removal, person_arms, turn_removal, turns
from loreloop.store.schema import MEMORIES, RESPONSES
from loreloop.store.turn_tables import TURN_USES, TURNS
from loreloop.store.turn_uses import Use, uses

AT_ONCE = 200  # rows of a page of an export
MOST_UNKNOWN = 10_000  # persons that a key may have deleted by now and still delete others of whom nothing is kept
T = TypeVar("T")
P = TypeVar("P", TurnPage, FeedbackPage)


class Deletion(msgspec.Struct, frozen=True):
    """What went, and the candidates that have learned from it: their weights still hold what they made of it."""

    turns: int
    memories: int
    responses: int
    feedback: int
    trained: tuple[Use, ...]


class Read(Protocol):
    """Runs a query on a connection that it opens and closes."""

    def __call__(self, query: Callable[[Connection], T]) -> T:
        """What the query gives."""
        ...


def reads_of(engine: Engine) -> Read:
    """Reads that keep neither a connection nor a transaction from one page to the next, however slow a reader is."""

    def read(query: Callable[[Connection], T]) -> T:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            return query(connection)

    return read


def export(read: Read, person: Person) -> Iterator[bytes]:
    """Everything of one person as one JSON object, piece by piece, with no more than a page of it in memory: turns with
    their content whatever was consented to, what the person has said of answers and what was said of these turns, names
    of memories, the candidates that were trained on them. A turn that is marked meanwhile may come twice."""
    yield b'{"person":' + msgspec.json.encode(person) + b',\n"turns":['
    yield from _listed(page.turns for page in _pages(read, partial(_turns, person)))
    yield b'],\n"feedback":['
    yield from _listed(page.feedback for page in _pages(read, partial(_said, person)))
    names = select(MEMORIES.c.id).where(_of(MEMORIES, person)).order_by(MEMORIES.c.id)
    yield b'],\n"memories":' + msgspec.json.encode(read(lambda connection: [*connection.scalars(names)]))
    yield b',\n"trained":' + msgspec.json.encode(read(lambda connection: uses(connection, person))) + b"}\n"


def _turns(person: Person, after: int, connection: Connection) -> TurnPage:
    return turns.page_of(connection, [_of(TURNS, person)], after, AT_ONCE, whole=True)


def _said(person: Person, after: int, connection: Connection) -> FeedbackPage:
    return feedback_removal.of_person(connection, person, after, AT_ONCE)


def _pages(read: Read, page_behind: Callable[[int, Connection], P]) -> Iterator[P]:
    """All pages of a feed but the empty one at its end."""
    after = -1
    while (page := read(partial(page_behind, after))).next > after:
        yield page
        after = page.next


def _listed(pages: Iterator[tuple[msgspec.Struct, ...]]) -> Iterator[bytes]:
    comma = b""
    for page in pages:
        # One by one: a page of large turns is several times as large in JSON.
        for item in page:
            yield comma + msgspec.json.encode(item)
            comma = b",\n"


def forget(connection: Connection, person: Person, now: float) -> Deletion:
    """Deletes a person: turns, feedback, memories, kept answers of the responses API, weights of their own. Done again
    it deletes what has come since, and tells the same candidates. BadRequest for nobody: that would be all that a key
    has asked without a user, and all that it will. TooLarge for one of whom nothing is kept, where the key has deleted
    very many: each is remembered for ever, and names can be made up."""
    if not person.user:
        raise BadRequest(
            "A person who is deleted has a name, and the empty one is that of all requests without a user. Turns of "
            "those go with their days, or with their deployment."
        )
    is_noted = deleted.is_deleted(connection, person)
    deleted.note(connection, person, _told(connection, person), now)
    n_said = feedback_removal.forget_person(connection, person)  # before the turns that it finds them by
    n_turns = turn_removal.remove(connection, _of(TURNS, person))
    n_memories = connection.execute(delete(MEMORIES).where(_of(MEMORIES, person))).rowcount
    # A kept answer tells its request's user, as OpenAI's do.
    user = func.coalesce(func.json_extract(RESPONSES.c.answer, "$.user"), "")
    mine = (RESPONSES.c.key_id == person.key_id) & (user == person.user)
    n_responses = connection.execute(delete(RESPONSES).where(mine)).rowcount
    n_arms = person_arms.forget_person(connection, person)
    trained = uses(connection, person)
    is_known = is_noted or trained or any((n_turns, n_memories, n_responses, n_said, n_arms))
    if not is_known and deleted.n_of_key(connection, person.key_id, MOST_UNKNOWN + 1) > MOST_UNKNOWN:
        raise TooLarge(
            f"Nothing is kept of the person {person.user[:80]!r}, and this key has deleted {MOST_UNKNOWN:,} persons "
            "already, each of whom is remembered; delete those of whom something is kept."
        )
    return Deletion(turns=n_turns, memories=n_memories, responses=n_responses, feedback=n_said, trained=trained)


def _told(connection: Connection, person: Person) -> list[str]:
    """The deployments that are to hear of a person's deletion."""
    # Of turns that have expired nobody knows the user any more, so every deployment of the key is told.
    asked = select(TURNS.c.deployment).where(TURNS.c.key_id == person.key_id)
    trained = select(TURN_USES.c.deployment).where(_of(TURN_USES, person))
    return [*connection.scalars(asked.union(trained))]


def _of(table: Any, person: Person) -> ColumnElement[bool]:
    return (table.c.key_id == person.key_id) & (table.c.user == person.user)

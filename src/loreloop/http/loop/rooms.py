"""How much feedback is kept: of a giver, of one person that it speaks for, about one target, about one deployment.

What is there is counted once and then only kept up, since to count a million statements for each that comes would take
longer than to keep it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import Connection

from loreloop.config import LimitConfig
from loreloop.protocol.errors import TooLarge
from loreloop.protocol.feedback import CHANNELS, Feedback
from loreloop.store import feedback
from loreloop.store.store import Store

MOST_OF_KEY, MOST_OF_PERSON = 1_000_000, 20_000  # statements that are kept
MOST_ROOMS, RECOUNT_SECONDS = 100_000, 60.0
PUBLIC = tuple(f"/{channel}" for channel in CHANNELS)  # ends of givers
Name = tuple[str, ...]


class Room(msgspec.Struct):
    """How much is left, and when what is in the store was counted."""

    left: int
    counted_at: float


@dataclass(frozen=True)
class Bound:
    """One bound that a statement meets: what it takes of it, how much that may be in all, and how what is kept is
    counted. `what` names what there may be so much of."""

    name: Name
    takes: int
    most: int
    kept: Callable[[Connection], int]
    what: str


@dataclass
class Rooms:
    """The rooms of one server by name, those that were used last; they are changed by its event loop alone."""

    known: OrderedDict[Name, Room] = field(default_factory=OrderedDict)

    async def take(self, store: Store, bounds: list[Bound]) -> list[Bound]:
        """Takes what a statement takes of each bound, and gives what `give_back` takes back. TooLarge where one is
        full; then nothing is taken."""
        for bound in bounds:
            await self._count(store, bound)
        # From here on nobody comes between.
        for bound in bounds:
            if self.known[bound.name].left < bound.takes:
                raise TooLarge(
                    f"{bound.what} are kept, which is the bound; more are taken when the turns of old ones have "
                    "expired."
                )
        for bound in bounds:
            self.known[bound.name].left -= bound.takes
        return bounds

    def give_back(self, bounds: list[Bound]) -> None:
        """Of a statement that was not kept, or was there already."""
        for bound in bounds:
            if (room := self.known.get(bound.name)) is not None:
                room.left += bound.takes

    async def _count(self, store: Store, bound: Bound) -> None:
        now, known = time.monotonic(), self.known.get(bound.name)
        # What is full is counted again after a while, since turns expire.
        if known is None or (known.left < bound.takes and now > known.counted_at + RECOUNT_SECONDS):
            n_kept = await store.read_apart(bound.kept)
            # Somebody else may have counted meanwhile, and taken of it already.
            if self.known.get(bound.name) is known:
                self.known[bound.name] = Room(bound.most - n_kept, now)
        self.known.move_to_end(bound.name)
        if len(self.known) > MOST_ROOMS:
            self.known.popitem(last=False)


def bounds_of(said: Feedback, limits: LimitConfig) -> list[Bound]:
    """The bounds that a statement meets, the nearest first."""
    giver, deployment, n_bytes = said.giver, said.deployment, feedback.n_bytes_of(said)
    bounds = [_of_target(said, limits), *_of_persons(said)]
    bounds.append(
        Bound(
            name=("target bytes", giver, deployment, said.target_id),
            takes=n_bytes,
            most=limits.target_feedback_mib << 20,
            kept=lambda connection: feedback.kept_of(connection, deployment, giver, said.target_id).n_bytes,
            what=f"{limits.target_feedback_mib} MiB of statements about {said.target_id[:80]!r} by this key",
        )
    )
    if giver.endswith(PUBLIC):  # everybody can read a token, and many a link
        bounds.append(
            Bound(
                name=("public bytes", giver, deployment),
                takes=n_bytes,
                most=limits.public_feedback_mib << 20,
                kept=lambda connection: feedback.kept_of(connection, deployment, giver).n_bytes,
                what=f"{limits.public_feedback_mib} MiB of statements on {deployment!r} from pages or links",
            )
        )
    bounds.append(
        Bound(
            name=("bytes", deployment),
            takes=n_bytes,
            most=limits.feedback_mib << 20,
            kept=lambda connection: feedback.kept_of(connection, deployment).n_bytes,
            what=f"{limits.feedback_mib} MiB of statements on {deployment!r}",
        )
    )
    return bounds


def _of_target(said: Feedback, limits: LimitConfig) -> Bound:
    return Bound(
        name=("target", said.giver, said.deployment, said.target_id),
        takes=1,
        most=limits.target_statements,
        kept=lambda connection: feedback.kept_of(connection, said.deployment, said.giver, said.target_id).statements,
        what=f"{limits.target_statements} statements about {said.target_id[:80]!r} by this key",
    )


def _of_persons(said: Feedback) -> list[Bound]:
    giver, who = said.giver, said.who
    found = [
        Bound(
            name=("key", giver),
            takes=1,
            most=MOST_OF_KEY,
            kept=lambda connection: feedback.n_given(connection, giver, None, MOST_OF_KEY),
            what=f"{MOST_OF_KEY} statements of this key",
        )
    ]
    if names_person(said):
        found.append(
            Bound(
                name=("person", giver, who),
                takes=1,
                most=MOST_OF_PERSON,
                kept=lambda connection: feedback.n_given(connection, giver, who, MOST_OF_PERSON),
                what=f"{MOST_OF_PERSON} statements of {who!r} by this key",
            )
        )
    return found


def names_person(said: Feedback) -> bool:
    """Whether one person speaks. Programs speak for many, and so does a key that leaves open who has said something:
    they are bounded by their key alone."""
    return said.source == "human" and bool(said.who)

"""What each person has: which weights are theirs, of what these were made, and what was decided and is not done yet.

    LOOP/persons.json          by person, or by team
    LOOP/persons/WHO/N/        what an adapter was made of, up to statement N

Knows no server, and not how an adapter is made.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from loreloop.learn.loop.cycle_files import data_of
from loreloop.learn.loop.state import read, written


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that is to answer its members: its decision's key, its weights, up to which statement it has learned,
    and whose words, where these are not one person's alone."""

    key: str
    target: str
    heard: int
    members: tuple[str, ...]
    learned: tuple[str, ...] = ()


class Own(msgspec.Struct, frozen=True):
    """A person's own champion, and the number of the newest correction that it was made of (also where it was
    rejected, so that the same words are not tried again). `members` are whose words these are, and `answers` whom
    it answers, where that is not one person alone. `decided` is what is not done yet."""

    target: str | None
    heard: int
    members: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    decided: Decided | None = None


class PersonsKept:
    """The records of one loop's persons, each change of which is on the disk before it counts."""

    def __init__(self, loop: Path) -> None:
        self.file, self.folder = loop / "persons.json", loop / "persons"
        self.owns: dict[str, Own] = dict(read(self.file, dict[str, Own])) if self.file.exists() else {}

    def heard(self) -> dict[str, int]:
        """Up to which statement each person's adapter has learned."""
        return {person: own.heard for person, own in self.owns.items()}

    def place(self, person: str, heard: int) -> Path:
        """Where it lies what an adapter is made of."""
        return self.folder / short(person) / str(heard)

    def decide(self, person: str, decided: Decided) -> None:
        """Notes an adapter before it answers anybody: who is deleted from here on is found among its members, and a
        death leaves nobody of a team without it."""
        before = self.owns.get(person)
        new = self._with(person, decided.learned, decided.members)
        target, heard = (before.target, before.heard) if before else (None, 0)
        self._keep(person, msgspec.structs.replace(new, target=target, heard=heard, decided=decided))

    def settle(self, person: str, target: str | None, heard: int, learned: Collection[str] = ()) -> None:
        """Notes what a person has now, and that nothing is left to be done. None: what was there before answers on."""
        new = self._with(person, learned, ())
        before = self.owns.get(person)
        self._keep(person, msgspec.structs.replace(new, target=target or (before and before.target), heard=heard))

    def take_back(self, person: str) -> None:
        """Notes that nothing is left to be done of what was decided, and that nothing came of it: what is heard of the
        same words makes another attempt."""
        self._keep(person, msgspec.structs.replace(self.owns[person], decided=None))

    def let_go(self, person: str) -> None:
        """Notes that shared weights answer all whom a person's own, or a team's, have answered."""
        self._keep(person, msgspec.structs.replace(self.owns[person], target=None, members=(), answers=()))

    def _with(self, person: str, learned: Collection[str], answers: Iterable[str]) -> Own:
        """Those whose words may be in weights that answer stay known, or their deletion would not find
        these: what was there before an attempt that did not hold answers on."""
        before = self.owns.get(person) or Own(None, 0)
        return Own(
            target=None,
            heard=0,
            members=tuple(dict.fromkeys((*before.members, *learned))),
            answers=tuple(dict.fromkeys((*_answered(person, before), *answers))) if learned else before.answers,
        )

    def _keep(self, person: str, own: Own) -> None:
        self.owns[person] = own
        written(self.file, msgspec.json.encode(self.owns))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing of anybody."""
        return not self.owns and not self._held()

    def teams_of(self, deleted: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Teams, and persons, whose weights know words of somebody deleted, with those whom they answer, or may."""
        found = {name: own for name, own in self.owns.items() if not {*own.members}.isdisjoint(deleted)}
        return {name: _answered(name, own) for name, own in found.items()}

    def drop(self, deleted: Collection[str]) -> None:
        """Keeps nothing of deleted persons and of teams that knew them: neither which weights were theirs, nor of what
        they were made, nor what an attempt has left that did not come to its end."""
        held = self._held()
        gone = {*self.teams_of(deleted), *(self.owns.keys() & {*deleted})}
        for person in {*deleted, *gone}:
            if short(person) in held:
                shutil.rmtree(self.folder / short(person), ignore_errors=True)
            self.owns.pop(person, None)
        for file in self.folder.glob("*/*/data.json"):
            if not data_of(file.parent).persons.isdisjoint(deleted):
                shutil.rmtree(file.parent, ignore_errors=True)
        if gone:
            written(self.file, msgspec.json.encode(self.owns))

    def _held(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()


def _answered(name: str, own: Own) -> tuple[str, ...]:
    """Whom weights answer, or may. Who has spoken of others' turns is answered by weights of their own, which these
    are not; only a team's record of an older version names nobody but its members."""
    if own.answers or (own.target is None and own.decided is None):
        return own.answers
    return own.members if name.startswith("\n") else (name,)


def short(person: str) -> str:
    """A person without their name: decisions are kept for ever, and a deleted person's name is not."""
    return hashlib.sha256(person.encode(errors="surrogatepass")).hexdigest()[:12]

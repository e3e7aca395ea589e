"""Adapters of single persons: whoever has corrected enough gets weights of their own, which hold what they corrected.

An adapter begins with the shared champion and learns all corrections that its person's turns have; it answers that
person alone when it gives most of them back. Everybody else, and a person whose adapter did not hold, has the shared
weights. A team is as one person with several names. Knows no statistics: one person's few words are no sample of
anything.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from loreloop.learn.loop.collecting import (
    Collected,
    Line,
    Rules,
    Used,
    newest_of,
    person_of,
    said_of,
    trainable,
    used_of,
)
from loreloop.learn.loop.collecting import lines_of_turn as all_lines_of
from loreloop.learn.loop.config import Persons
from loreloop.learn.loop.cycle_files import Data, data_of, drop_lines, drop_names, lay_out
from loreloop.learn.loop.server import Feeds
from loreloop.learn.loop.state import Decision, LoopFolder, Revision, read, written
from loreloop.learn.loop.training import Made
from loreloop.learn.loop.withdrawing import withdrawn
from loreloop.learn.refusals import Refused
from loreloop.protocol.episodes import Turn
from loreloop.protocol.errors import BadRequest, Conflict, Gone, NotFound
from loreloop.protocol.feedback import EDIT, Feedback

SET_TRIES = 3


class PersonServer(Feeds, Protocol):
    """What this asks of a server; `Door` is one."""

    def set_person(self, user: str, target: str, key_id: str = "") -> None:
        """Has one person answered by weights of their own."""
        ...

    def clear_person(self, user: str, key_id: str = "") -> None:
        """Has one person answered by the deployment's own weights again."""
        ...

    def mark_used(
        self, candidate: str, revision: str | None, turns: Sequence[str], start: str | None = None
    ) -> tuple[str, ...]:
        """Says which turns a candidate is trained on, and with which revision it began; gives those that are not there
        any more."""
        ...


class Own(msgspec.Struct, frozen=True):
    """A person's own champion, and the number of the newest correction that it was made of (also where it was
    rejected, so that the same words are not tried again); of a team, whose corrections these are, and whom it
    answers."""

    target: str | None
    heard: int
    members: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Due:
    """A person who gets an adapter now, or a team, with the lines for it; `members` are whom it shall answer."""

    person: str
    members: tuple[str, ...]
    lines: tuple[Line, ...]
    used: tuple[Used, ...]
    heard: int

    @property
    def learned(self) -> tuple[str, ...]:
        """Of a team, whose words it learns; () for a single person."""
        return () if self.members == (self.person,) else tuple(dict.fromkeys(used.person for used in self.used))


@dataclass
class PersonCourse:
    """The adapters of one loop's persons. `train` makes weights of a folder, `right` is the share of lines that weights
    answer as they stand there."""

    rules: Persons
    folder: LoopFolder
    server: PersonServer
    train: Callable[[Path, str | None, str], Awaitable[Made | None]]
    right: Callable[[str, Sequence[Line]], Awaitable[float]]
    now: Callable[[], float]
    deployment: str
    owns: dict[str, Own] = field(init=False)
    refused: str = field(init=False, default="")  # what the server had against the adapter in hand

    def __post_init__(self) -> None:
        file = self._file
        self.owns = dict(read(file, dict[str, Own])) if file.exists() else {}

    @property
    def _file(self) -> Path:
        return self.folder.path / "persons.json"

    async def step(
        self, champion: Revision, turns: Sequence[Turn], statements: Sequence[Feedback], rules: Rules
    ) -> bool:
        """Makes the adapter of one person who is due; False where nobody is."""
        found = due(turns, statements, rules, self.rules, self.owns)
        if not found:
            return False
        self.refused = ""
        await self._make(found[0], champion, max((turn.number for turn in turns), default=0))
        return True

    def forget(self) -> bool:
        """Of persons who were deleted nothing is kept: neither which weights were theirs nor of what they were made,
        nor what an attempt has left that did not come to its end. True where a team has lost its weights so, which are
        made anew of what the others have said."""
        folder = self.folder.path / "persons"
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
        if not held and not self.owns:
            return False
        deleted = self.server.deleted_persons()
        for person in deleted:
            if _short(person) in held:
                shutil.rmtree(folder / _short(person), ignore_errors=True)
        gone = self.owns.keys() & deleted
        # What a team's adapter has learned of a member it knows, so it answers the others no more, at once.
        teams = {name for name, own in self.owns.items() if not deleted.isdisjoint(own.members)}
        for member in {each for name in teams for each in self._answered(name)} - deleted:
            key_id, _, user = member.partition("\n")
            self.server.clear_person(user, key_id)
        gone |= teams
        for person in gone:
            shutil.rmtree(folder / _short(person), ignore_errors=True)
            del self.owns[person]
        for file in folder.glob("*/*/data.json"):
            if not deleted.isdisjoint(data_of(file.parent).persons):
                shutil.rmtree(file.parent, ignore_errors=True)
        if gone:
            written(self._file, msgspec.json.encode(self.owns))
        return bool(teams)

    def _answered(self, team: str) -> tuple[str, ...]:
        """Whom a team's weights answer, or may."""
        own = self.owns[team]
        return own.answers or own.members

    def _note(self, one: Due, target: str | None, heard: int, answers: Sequence[str]) -> None:
        """Keeps what a person has now. Of a team, members whose words may be in weights that answer stay known, or
        their deletion would not find these: what was there before an attempt that did not hold answers on."""
        before = self.owns.get(one.person)
        self.owns[one.person] = Own(
            target=target or (before.target if before else None),
            heard=heard,
            members=tuple(dict.fromkeys((*(before.members if before else ()), *one.learned))),
            answers=tuple(dict.fromkeys((*(before.answers if before else ()), *answers))) if one.learned else (),
        )
        written(self._file, msgspec.json.encode(self.owns))

    async def _make(self, one: Due, champion: Revision, turns_seen: int) -> None:
        short = _short(one.person)
        key, name = f"person:{short}:{one.heard}", f"{self.deployment}-{short}-{one.heard}"
        if one.learned:
            # Without a member who was deleted it is another attempt, also where the newest correction is the same.
            key += f":{_short(' '.join(sorted(one.learned)))}"
        folder = self.folder.path / "persons" / short / str(one.heard)
        collected = Collected()
        collected.lines["sft"], collected.used["sft"] = list(one.lines), list(one.used)
        data = Data(used={"sft": one.used}, heard=one.heard, turns_seen=turns_seen)
        # What an attempt that died has left may hold words that were withdrawn since.
        if not (folder / "data.json").exists() or data_of(folder).used != data.used:
            lay_out(folder, collected, ["sft"], data)
        decision = self.folder.decided(key)
        if decision is None:
            # Marked before the first step, and asked again behind the last one: who withdraws meanwhile is heeded.
            what = withdrawn(data, self.server, self.server.mark_used(name, None, data.turns, champion.target))
            made = None if what else await self._trained(folder, champion.state, name)
            share = await self._share(made, one.lines) if made else 0.0
            if made:
                what = withdrawn(data, self.server, self.server.mark_used(name, made.path, data.turns, champion.target))
            if what:
                # Nothing is decided: the words that are left make another attempt.
                self.folder.tell(f"Weights of a person's own are made anew: {what}.")
                shutil.rmtree(folder)
                return
            decision = self.folder.decide(self._decision(key, one, made, share))
        target = decision.candidate if decision.verdict == "promoted" else None
        answers = one.members if target else ()
        if target and one.learned:
            # Before it answers anybody: who is deleted while this process is down is found among its members.
            before = self.owns.get(one.person)
            self._note(one, None, before.heard if before else 0, answers)
        words = "" if target is None else self._set_all(one.members, target)
        if words is None:
            return  # what was decided stands, and is carried out in a later step
        if words:
            sentence = f"The server did not take the adapter: {words}"
            refused = self._decision(f"{key}:refused", one, None, 0.0)
            self.folder.decide(msgspec.structs.replace(refused, sentence=sentence))
            target = None
        # Before this is over: behind it nobody would look for what a person said.
        drop_lines(folder)
        drop_names(folder)
        self._note(one, target, one.heard, answers)

    async def _trained(self, folder: Path, start: str | None, name: str) -> Made | None:
        try:
            return await self.train(folder, start, name)
        except BadRequest as error:
            # What is refused once is refused always; this person's next words make another attempt.
            self.refused = error.message
            return None

    async def _share(self, made: Made, lines: Sequence[Line]) -> float:
        try:
            return await self.right(made.path, lines)
        except Refused as error:
            self.refused = error.message
            return 0.0

    def _set_all(self, members: Sequence[str], target: str) -> str | None:
        """The same of all whom an adapter shall answer; the first trouble ends it."""
        return next((found for member in members if (found := self._set(member, target)) != ""), "")

    def _set(self, person: str, target: str) -> str | None:
        """Has the person answered by their weights; what the server had against that, "" for nothing. None where others
        have moved the deployment each time."""
        key_id, _, user = person.partition("\n")
        for _ in range(SET_TRIES):
            try:
                self.server.set_person(user, target, key_id)
            except (BadRequest, NotFound, Gone) as error:
                return error.message
            except Conflict as error:
                # Somebody has moved the deployment while the weights warmed up.
                self.folder.tell(f"The weights of one person wait: {error.message}")
            else:
                return ""
        return None

    def _decision(self, key: str, one: Due, made: Made | None, share: float) -> Decision:
        fine = made is not None and share >= self.rules.right_least
        n = len(one.lines)
        sentence = (
            f"An adapter of their own answers {share:.0%} of {n} prompts as they were corrected"
            f"{'' if fine else f', where {self.rules.right_least:.0%} are the least'}."
        )
        if self.refused:
            fine, sentence = False, f"An adapter of their own was not made: {self.refused}"
        return Decision(
            key=key,
            cycle=0,
            stage="person",
            verdict="promoted" if fine else "rejected",
            sentence=sentence,
            numbers={"corrections": n, "right": share},
            at=self.now(),
            candidate=made.path if made else None,
            # Decisions are kept for ever, and a deleted person's name is not.
            person=_short(one.person),
        )


def _short(person: str) -> str:
    return hashlib.sha256(person.encode(errors="surrogatepass")).hexdigest()[:12]


def _team(turn: Turn, team: str) -> str:
    """A team, in place of a person. Users of other keys who have the same names are other persons, and in no team with
    these. It is nobody's own name: no key's id is empty."""
    return f"\n{turn.person.key_id}\n{team}"


def due(
    turns: Sequence[Turn], statements: Sequence[Feedback], rules: Rules, wanted: Persons, owns: Mapping[str, Own]
) -> list[Due]:
    """Persons with enough new corrections, with all their corrections that may be learned from, the newest last."""
    by_id = trainable(turns, statements, rules)
    team_of = {user: team for team, users in wanted.teams.items() for user in users}
    members: dict[str, set[str]] = defaultdict(set)
    for turn in newest_of(turns).values():
        if turn.person.user in team_of and person_of(turn) not in rules.deleted:
            members[_team(turn, team_of[turn.person.user])].add(person_of(turn))
    lines: dict[str, list[tuple[int, Line, Used]]] = defaultdict(list)
    for turn_id, said in said_of(by_id, statements).items():
        turn = by_id[turn_id]
        edits = [one.number for one in said if one.metric == EDIT]
        for method, line in all_lines_of(turn, said, by_id):
            # Without a name, a key's users are one crowd and no person.
            user = turn.person.user
            may = user and (not wanted.users or user in wanted.users or user in team_of)
            if method == "sft" and edits and may:
                whose = _team(turn, team_of[user]) if user in team_of else person_of(turn)
                lines[whose].append((max(edits), line, used_of(turn)))
    found = []
    for person, own in lines.items():
        heard = owns[person].heard if person in owns else 0
        own.sort(key=lambda each: each[0])
        if sum(number > heard for number, _, _ in own) >= wanted.corrections > 0:
            kept = own[-wanted.most :]
            found.append(
                Due(
                    person=person,
                    members=tuple(sorted(members.get(person, {person}))),
                    lines=tuple(line for _, line, _ in kept),
                    used=tuple(used for _, _, used in kept),
                    heard=own[-1][0],
                )
            )
    # Whoever has waited longest comes first, so that nobody who talks much keeps others from their turn.
    return sorted(found, key=lambda one: one.heard)

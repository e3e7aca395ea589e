"""Adapters of single persons: whoever has corrected enough gets weights of their own, which hold what they corrected.

An adapter begins with the shared champion and learns all corrections that its person's turns have; it answers that
person alone when it gives most of them back. Everybody else, and a person whose adapter did not hold, has the shared
weights. Knows no statistics: one person's few words are no sample of anything.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from loreloop.learn.loop.collecting import Collected, Line, Rules
from loreloop.learn.loop.config import Persons
from loreloop.learn.loop.cycle_files import Data, data_of, drop_lines, drop_names, lay_out
from loreloop.learn.loop.persons_due import Due, due
from loreloop.learn.loop.persons_kept import Decided, PersonsKept, short
from loreloop.learn.loop.server import Feeds
from loreloop.learn.loop.state import Decision, LoopFolder, Revision, Verdict
from loreloop.learn.loop.training import Made
from loreloop.learn.loop.withdrawing import withdrawn
from loreloop.learn.refusals import Refused
from loreloop.protocol.episodes import Turn
from loreloop.protocol.errors import BadRequest, Conflict, Gone, NotFound
from loreloop.protocol.feedback import Feedback

SET_TRIES = 3


class PersonServer(Feeds, Protocol):
    """What this asks of a server; `Door` is one."""

    def person_target(self, user: str, key_id: str = "") -> str | None:
        """The weights that answer one person; None where the deployment's own do."""
        ...

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
    kept: PersonsKept = field(init=False)
    refused: str = field(init=False, default="")  # what the server had against the adapter in hand

    def __post_init__(self) -> None:
        self.kept = PersonsKept(self.folder.path)

    async def step(
        self, champion: Revision, turns: Sequence[Turn], statements: Sequence[Feedback], rules: Rules
    ) -> bool:
        """Makes the adapter of one person who is due; False where nobody is. What was decided before a death, and is
        not done yet, comes first: of a team, some may have the new weights and some the old ones."""
        if (left := next(((name, own) for name, own in self.kept.owns.items() if own.decided), None)) is not None:
            assert left[1].decided is not None, "only such were looked for"
            self._carry_out(left[0], left[1].decided)
            return True
        found = due(turns, statements, rules, self.rules, self.kept.heard())
        if not found:
            return False
        self.refused = ""
        await self._make(found[0], champion, max((turn.number for turn in turns), default=0))
        return True

    def forget(self) -> bool:
        """Of persons who were deleted nothing is kept. What an adapter has learned of their words it knows, so it
        answers the others no more, at once; True where somebody has lost weights so, which are made anew of what the
        others have said."""
        if self.kept.is_empty:
            return False
        deleted = self.server.deleted_persons()
        teams = self.kept.teams_of(deleted)
        for member in {each for answered in teams.values() for each in answered} - deleted:
            self.server.clear_person(*_names(member))
        self.kept.drop(deleted)
        return bool(teams)

    async def _make(self, one: Due, champion: Revision, turns_seen: int) -> None:
        who = short(one.person)
        name = f"{self.deployment}-{who}-{one.heard}"
        # Without words that were taken back, or a member who was deleted, it is another attempt, also where the newest
        # correction is the same: what was decided about weights that know these is not for it.
        key = f"person:{who}:{one.heard}:{_words_of(one)}"
        while self.folder.decided(f"{key}:void") is not None:
            key += ":anew"
        folder = self.kept.place(one.person, one.heard)
        data = Data(used={"sft": one.used}, heard=one.heard, turns_seen=turns_seen, attempt=f"{key} {champion.target}")
        # What an attempt that died has left may hold words that were withdrawn since, or a champion's that is none now.
        if not (folder / "data.json").exists() or data_of(folder).attempt != data.attempt:
            collected = Collected()
            collected.lines["sft"], collected.used["sft"] = list(one.lines), list(one.used)
            lay_out(folder, collected, ["sft"], data)
        decision = self.folder.decided(key) or await self._judged(one, folder, data, name, key, champion)
        if decision is None:
            shutil.rmtree(folder)
        elif decision.verdict == "promoted" and decision.candidate:
            decided = Decided(
                key=key, target=decision.candidate, heard=one.heard, members=one.members, learned=one.learned
            )
            self.kept.decide(one.person, decided)
            self._carry_out(one.person, decided)
        else:
            self._over(one.person, None, one.heard, one.learned)

    async def _judged(
        self, one: Due, folder: Path, data: Data, name: str, key: str, champion: Revision
    ) -> Decision | None:
        """Trains an adapter and decides about it. None where words of it were withdrawn meanwhile: nothing is decided,
        and the words that are left make another attempt."""
        # Marked before the first step, and asked again behind the last one: who withdraws meanwhile is heeded.
        what = withdrawn(data, self.server, self.server.mark_used(name, None, data.turns, champion.target))
        made = None if what else await self._trained(folder, champion.state, name)
        share = await self._share(made, one.lines) if made else 0.0
        if made:
            what = withdrawn(data, self.server, self.server.mark_used(name, made.path, data.turns, champion.target))
        if what:
            self.folder.tell(f"Weights of a person's own are made anew: {what}.")
            return None
        return self.folder.decide(self._decision(key, one, made, share))

    def _carry_out(self, person: str, decided: Decided) -> None:
        """Has the members answered by what was decided, unless words that it has learned were taken back since. Where
        others have moved the deployment each time, a later step does it."""
        is_void = self._is_void(person, decided)
        if not is_void and self.folder.decided(f"{decided.key}:refused") is None:
            words = self._set_all(decided.members, decided.target)
            if words is None:
                return
            if not words:
                self._over(person, decided.target, decided.heard, decided.learned)
                return
            self._note(person, decided, "refused", "rejected", f"The server did not take the adapter: {words}")
        if not self._set_back(person, decided.members):
            return
        if is_void:
            shutil.rmtree(self.kept.place(person, decided.heard), ignore_errors=True)
            self.kept.take_back(person)
        else:
            self._over(person, None, decided.heard, decided.learned)

    def _is_void(self, person: str, decided: Decided) -> bool:
        """Whether words of what was decided were taken back before it has answered everybody whom it should: between
        the two lie a death, or a server that was away, for however long."""
        if self.folder.decided(f"{decided.key}:void") is not None:
            return True
        folder = self.kept.place(person, decided.heard)
        # Where nobody knows any more whose words it has learned, nobody can be asked.
        gone = "what it was made of is gone"
        what = withdrawn(data_of(folder), self.server) if (folder / "data.json").exists() else gone
        if not what:
            return False
        self._note(
            person, decided, "void", "void", f"The adapter answers nobody: {what}. It is made anew without that."
        )
        return True

    def _note(self, person: str, decided: Decided, what: str, verdict: Verdict, sentence: str) -> None:
        """Writes down why an adapter does not answer, before anything is done about it."""
        self.folder.decide(
            Decision(
                key=f"{decided.key}:{what}",
                cycle=0,
                stage="person",
                verdict=verdict,
                sentence=sentence,
                at=self.now(),
                candidate=decided.target,
                person=short(person),
            )
        )

    def _over(self, person: str, target: str | None, heard: int, learned: Sequence[str]) -> None:
        folder = self.kept.place(person, heard)
        # Before this is over: behind it nobody would look for what a person said.
        drop_lines(folder)
        drop_names(folder)
        self.kept.settle(person, target, heard, learned)

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

    def _set_back(self, person: str, members: Sequence[str]) -> bool:
        """Has all members answered alike again where new weights answer some of them only: by those that they had, or,
        where the server does not take these any more, by the shared ones. False where a later step has to do it."""
        own = self.kept.owns[person]
        if own.target is not None:
            # Who has them still need not be given them, and may be one whom the server gives nothing just now.
            others = [one for one in members if self.server.person_target(*_names(one)) != own.target]
            words = self._set_all(others, own.target)
            if words is None:
                return False
            if not words:
                return True
            self.folder.tell(f"The server did not take back older weights, so shared ones answer: {words}")
        for member in dict.fromkeys((*members, *own.answers)):
            self.server.clear_person(*_names(member))
        self.kept.let_go(person)
        return True

    def _set(self, person: str, target: str) -> str | None:
        """Has the person answered by their weights; what the server had against that, "" for nothing. None where others
        have moved the deployment each time."""
        user, key_id = _names(person)
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
            person=short(one.person),
        )


def _names(person: str) -> tuple[str, str]:
    """A person's user and key, as the server is told them."""
    key_id, _, user = person.partition("\n")
    return user, key_id


def _words_of(one: Due) -> str:
    """What an adapter is to learn, in a few letters."""
    return short(msgspec.json.encode((one.lines, one.used)).decode())

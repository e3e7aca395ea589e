"""Who is due for weights of their own: whoever has corrected enough, with all corrections that may be learned.

A team is as one person with several names. Pure functions over turns and statements; knows no weights, and nothing of
what becomes of whoever is due.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loreloop.learn.loop.collecting import (
    Line,
    Rules,
    Used,
    heard_of,
    lines_of_turn,
    newest_of,
    person_of,
    trainable,
    used_of,
)
from loreloop.learn.loop.config import Persons
from loreloop.protocol.episodes import Turn
from loreloop.protocol.feedback import EDIT, Feedback

Corrections = list[tuple[int, Line, Used]]  # each with the number of its statement


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
        """Whose words it learns; () for a single person whose words are all their own."""
        known = tuple(dict.fromkeys(who for used in self.used for who in (used.person, *used.others)))
        return () if self.members == (self.person,) == known else known


def due(
    turns: Sequence[Turn], statements: Sequence[Feedback], rules: Rules, wanted: Persons, heard: Mapping[str, int]
) -> list[Due]:
    """Persons with enough new corrections, with all their corrections that may be learned from, the newest last.
    `heard` is up to which statement each person's adapter has learned."""
    team_of = {user: team for team, users in wanted.teams.items() for user in users}
    members = _members(turns, rules, team_of)
    found = []
    for person, own in _corrections(turns, statements, rules, wanted).items():
        own.sort(key=lambda each: each[0])
        if sum(number > heard.get(person, 0) for number, _, _ in own) >= wanted.corrections > 0:
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


def _corrections(
    turns: Sequence[Turn], statements: Sequence[Feedback], rules: Rules, wanted: Persons
) -> Mapping[str, Corrections]:
    """What each person, or team, has corrected."""
    by_id = trainable(turns, statements, rules)
    team_of = {user: team for team, users in wanted.teams.items() for user in users}
    found: dict[str, Corrections] = defaultdict(list)
    for turn_id, said in heard_of(by_id, statements, rules).items():
        turn = by_id[turn_id]
        edits = [one.number for one in said if one.metric == EDIT]
        for method, line in lines_of_turn(turn, said, by_id):
            # Without a name, a key's users are one crowd and no person.
            user = turn.person.user
            may = user and (not wanted.users or user in wanted.users or user in team_of)
            if method == "sft" and edits and may:
                whose = _team(turn, team_of[user]) if user in team_of else person_of(turn)
                found[whose].append((max(edits), line, used_of(method, turn, said, by_id)))
    return found


def _members(turns: Sequence[Turn], rules: Rules, team_of: Mapping[str, str]) -> Mapping[str, set[str]]:
    """Who of each team has asked something."""
    found: dict[str, set[str]] = defaultdict(set)
    for turn in newest_of(turns).values():
        if turn.person.user in team_of and person_of(turn) not in rules.deleted:
            found[_team(turn, team_of[turn.person.user])].add(person_of(turn))
    return found


def _team(turn: Turn, team: str) -> str:
    """A team, in place of a person. Users of other keys who have the same names are other persons, and in no team with
    these. It is nobody's own name: no key's id is empty."""
    return f"\n{turn.person.key_id}\n{team}"

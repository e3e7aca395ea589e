"""Turns and what was said of them as lines of files to learn from. Pure functions over the two feeds.

What never becomes a line, whatever was said of it: turns without consent, side turns, turns of episodes that two
revisions answered, turns of deleted persons, and turns whose prompt stands in the golden set. Lines are those of the
files that `loreloop train` reads, so that a candidate's data can be looked at and trained on by hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from loreloop.learn.loop.door import person_key
from loreloop.learn.loop.reward.events import HeldOut, nothing_held_out, prompt_key
from loreloop.protocol.episodes import UNLEARNABLE, Message, Turn
from loreloop.protocol.feedback import ACCEPTED, COMMENT, EDIT, PREFERENCE, SCORE, THUMB, Feedback
from loreloop.protocol.feedback_rules import is_about, is_golden, speakers, standing

LIKED, DISLIKED = 0.75, 0.25  # scores that count as a thumb
MARKS = (THUMB, ACCEPTED, SCORE)  # a verdict has a scale of its own
# Which statements are in a method's lines.
READ = {
    "sft": (EDIT,),
    "dpo": (EDIT, PREFERENCE),
    "kto": MARKS,
    "liked": MARKS,
    "hindsight": (COMMENT,),
    "grpo": (EDIT,),
}
Line = dict[str, Any]


class Used(msgspec.Struct, frozen=True):
    """A turn that a file's line was made of, whose it is, and its prompt's key: what was learned measures nothing.
    `others` are persons of whom the line holds words beside the turn's own; `worse` are turns whose answers it is held
    against."""

    turn: str
    person: str
    prompt: str = ""
    others: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rules:
    """What may be learned from: `deleted` persons, prompts that are `golden`, and the most lines, of all and of one
    person. Of corrections, `most_corrections` (None: all); those come first that no cycle has `tried`, then those that
    the champion does not hold. `tried` and `holds` say of turns, by their ids, up to which statement corrections of
    them were learned; where nobody knows what was tried (None), the newest come first."""

    deleted: frozenset[str] = frozenset()
    golden: frozenset[str] = frozenset()
    held_out: HeldOut = nothing_held_out  # prompts that the reward's golden set holds
    most: int = 2000
    most_per_person: int = 200
    liked: float = 0.0
    most_corrections: int | None = None
    tried: Mapping[str, int] | None = None
    holds: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Collected:
    """Lines by method, each with its turn beside it, in the order of the feed. `n_corrections` are imitated; `left` are
    those that no cycle has tried and for which this one has no room."""

    lines: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))
    used: dict[str, list[Used]] = field(default_factory=lambda: defaultdict(list))
    n_corrections: int = 0
    left: int = 0

    def add(self, method: str, used: Used, line: Line) -> None:
        """One more line of a turn."""
        self.lines[method].append(line)
        self.used[method].append(used)


def used_of(method: str, turn: Turn, said: Sequence[Feedback], turns: Mapping[str, Turn]) -> Used:
    """A turn as it is noted that a method has learned from it, out of what was said of it."""
    read = [one for one in said if one.metric in READ[method]]
    worse = [found for one in read if (found := _worse(one, turn, turns)) is not None]
    persons = dict.fromkeys((*(each for one in read for each in _voices(one, turn)), *map(person_of, worse)))
    own = person_of(turn)
    return Used(
        turn=turn.id,
        person=own,
        prompt=prompt_key(turn.messages),
        others=tuple(person for person in persons if person != own),
        worse=tuple(dict.fromkeys(found.id for found in worse)),
    )


def _voices(one: Feedback, turn: Turn) -> list[str]:
    """Who may have said it, as `person_key` writes persons: with whose deletion it goes."""
    return [person_key(each.key_id, each.user) for each in speakers(one, turn)]


def person_of(turn: Turn) -> str:
    """Whose turn it is, as `person_key` writes it."""
    return person_key(turn.person.key_id, turn.person.user)


def said_of(turns: Mapping[str, Turn], statements: Iterable[Feedback]) -> dict[str, list[Feedback]]:
    """What stands of each turn, by its id; what was said of an episode counts for each of its turns."""
    episodes: dict[str, list[Turn]] = defaultdict(list)
    for turn in turns.values():
        episodes[turn.episode_id].append(turn)
    found: dict[str, list[Feedback]] = defaultdict(list)
    for one in standing(statements):
        named = [turns[one.target_id]] if one.target_id in turns else []
        for turn in episodes.get(one.target_id, []) if one.level == "episode" else named:
            if is_about(one, turn):
                found[turn.id].append(one)
    return found


def heard_of(turns: Mapping[str, Turn], statements: Iterable[Feedback], rules: Rules) -> dict[str, list[Feedback]]:
    """What stands of each turn and may be learned from: the words of deleted persons may not, whosever turn it is."""
    found = {
        id: [one for one in said if rules.deleted.isdisjoint(_voices(one, turns[id]))]
        for id, said in said_of(turns, statements).items()
    }
    return {id: said for id, said in found.items() if said}


def newest_of(turns: Iterable[Turn]) -> dict[str, Turn]:
    """The turns by their ids, each as the feed told it last: a turn that was marked anew stands there twice."""
    found: dict[str, Turn] = {}
    for turn in turns:
        if turn.id not in found or found[turn.id].number < turn.number:
            found[turn.id] = turn
    return found


def may_be_read(turn: Turn) -> bool:
    """Whether a turn is there for the loop at all: its person consents, and it is whole and no side turn."""
    return turn.consent and not turn.side and turn.fate not in UNLEARNABLE


def fresh_of(turns: Iterable[Turn], used: Collection[str], n: int) -> list[Turn]:
    """The newest turns whose prompts a candidate is asked. What it was not trained on (`used`) says more; of that there
    may be none yet."""
    readable = [turn for turn in turns if may_be_read(turn)]
    fresh = [turn for turn in readable if turn.id not in used] or readable
    return fresh[-n:] if n else []


def may_train(turn: Turn, rules: Rules) -> bool:
    """Whether anything may be learned from a turn at all."""
    if not turn.messages or not turn.answer or not may_be_read(turn) or person_of(turn) in rules.deleted:
        return False
    return prompt_key(turn.messages) not in rules.golden and not rules.held_out(turn.messages)


def trainable(turns: Iterable[Turn], statements: Iterable[Feedback], rules: Rules) -> dict[str, Turn]:
    """The turns that may be learned from, by their ids. A prompt on which a label to measure with stands is held out,
    with all turns that it began; of an episode with one, the prompts of all its turns."""
    newest = newest_of(turns)
    rules = replace(rules, golden=rules.golden | measured_of(newest.values(), statements))
    return {turn.id: turn for turn in newest.values() if may_train(turn, rules)}


def measured_of(turns: Iterable[Turn], statements: Iterable[Feedback]) -> frozenset[str]:
    """The keys of all prompts on which a label to measure with stands."""
    labels: dict[str, list[Feedback]] = defaultdict(list)
    for one in filter(is_golden, standing(statements)):
        labels[one.target_id].append(one)
    return frozenset(
        prompt_key(turn.messages)
        for turn in turns
        if any(is_about(one, turn) for id in (turn.id, turn.episode_id) for one in labels.get(id, ()))
    )


def collect(turns: Iterable[Turn], statements: Iterable[Feedback], rules: Rules) -> Collected:
    """Lines of all methods, out of the newest statements that the rules let through."""
    statements = list(statements)
    by_id = trainable(turns, statements, rules)
    found, numbers = Collected(), dict[str, int]()
    for turn_id, said in heard_of(by_id, statements, rules).items():
        numbers[turn_id] = max((one.number for one in said if one.metric == EDIT), default=0)
        for method, line in lines_of_turn(by_id[turn_id], said, by_id):
            found.add(method, used_of(method, by_id[turn_id], said, by_id), line)
    for method in found.lines:
        if method != "sft" or rules.tried is None:
            _bound(found, method, rules)
    if "sft" in found.lines:
        _portion(found, rules, numbers)
    _mix_liked(found, rules)
    return found


def lines_of_turn(turn: Turn, said: Sequence[Feedback], turns: Mapping[str, Turn]) -> Iterable[tuple[str, Line]]:
    """What one turn gives to learn, as methods with a line each."""
    prompt, answer = list(turn.messages), turn.answer
    tools = {"tools": list(turn.tools)} if turn.tools else {}
    edits = [str(one.value) for one in said if one.metric == EDIT]
    if edits:
        wanted = {"role": "assistant", "content": edits[-1]}
        yield "sft", {"messages": [*map(_read_only, prompt), wanted]} | tools
        if edits[-1] != answer.get("content"):
            yield "dpo", {"prompt": prompt, "chosen": [wanted], "rejected": [_said(answer)]} | tools
    marks = [_mark(one.value) for one in said if one.metric in MARKS]
    clear = [mark for mark in marks if mark is not None]
    # Persons who do not agree teach nothing; an edited answer was not what was wanted, whatever else was said.
    if clear and (all(clear) or not any(clear)) and not (edits and all(clear)):
        yield "kto", {"prompt": prompt, "completion": [_said(answer)], "label": clear[0]} | tools
        if clear[0]:
            yield "liked", {"messages": [*map(_read_only, prompt), _said(answer)]} | tools
    for one in said:
        if (worse := _worse(one, turn, turns)) is not None:
            yield "dpo", {"prompt": prompt, "chosen": [_said(answer)], "rejected": [_said(worse.answer)]} | tools
        if one.metric == COMMENT and str(one.value).strip():
            yield "hindsight", {"prompt": prompt, "completion": [_said(answer)], "outcome": str(one.value)} | tools
    yield "grpo", {"messages": prompt, "turn": turn.id, "answer": edits[-1] if edits else ""} | tools


def _worse(one: Feedback, turn: Turn, turns: Mapping[str, Turn]) -> Turn | None:
    """The turn to the same prompt than which a statement finds this one better; None where it finds none."""
    worse = turns.get(str(one.value)) if one.metric == PREFERENCE else None
    return worse if worse is not None and worse.messages == turn.messages else None


def _bound(found: Collected, method: str, rules: Rules) -> None:
    """The newest lines, of each person no more than their share."""
    kept: list[int] = []
    by_person: dict[str, int] = defaultdict(int)
    for place in reversed(range(len(found.lines[method]))):
        person = found.used[method][place].person
        by_person[person] += 1
        if by_person[person] <= rules.most_per_person and len(kept) < rules.most:
            kept.append(place)
    found.lines[method] = [found.lines[method][place] for place in reversed(kept)]
    found.used[method] = [found.used[method][place] for place in reversed(kept)]


def _portion(found: Collected, rules: Rules, numbers: Mapping[str, int]) -> None:
    """As many corrections as a cycle has time for, of each person no more than their share. First those that were never
    tried, in the order in which they have waited, so that none is lost behind newer ones; there is room for older ones
    where these are few. `numbers` are those of each turn's newest correction."""
    used, tried = found.used["sft"], rules.tried or {}

    def rank(place: int) -> tuple[int, int]:
        turn = used[place].turn
        number = numbers[turn]
        if number > tried.get(turn, 0):
            return 0, number
        return (1 if number > rules.holds.get(turn, 0) else 2), -number

    most = rules.most if rules.most_corrections is None else min(rules.most, rules.most_corrections)
    kept: list[int] = []
    by_person: dict[str, int] = defaultdict(int)
    for place in sorted(range(len(used)), key=rank):
        if len(kept) < most and by_person[used[place].person] < rules.most_per_person:
            by_person[used[place].person] += 1
            kept.append(place)
        elif rank(place)[0] == 0:
            found.left += 1
    found.lines["sft"] = [found.lines["sft"][place] for place in sorted(kept)]
    found.used["sft"] = [used[place] for place in sorted(kept)]
    found.n_corrections = len(kept)


def _mix_liked(found: Collected, rules: Rules) -> None:
    """Beside corrections, so many liked answers each, so that what was good stays as it was."""
    n = round(rules.liked * len(found.lines.get("sft", [])))
    liked, used = found.lines.pop("liked", []), found.used.pop("liked", [])
    if n and liked:
        found.lines["sft"] += liked[-n:]
        found.used["sft"] += used[-n:]


def _read_only(message: Message) -> Message:
    """An earlier answer is read, and not learned again."""
    return {**message, "weight": 0} if message.get("role") == "assistant" else message


def _said(answer: Message) -> Message:
    kept = {name: answer[name] for name in ("content", "tool_calls") if answer.get(name)}
    return {"role": "assistant", "content": ""} | kept


def _mark(value: bool | float | str) -> bool | None:
    """A thumb of a value; None where it is neither good nor bad."""
    if isinstance(value, str):
        return None
    return True if value >= LIKED else False if value <= DISLIKED else None

"""Golden prompts that reviewers have made: right answers that they wrote for recorded turns, as tasks for the gate.

Of the labels to measure with (the tag `golden`) only those are taken that hold a right answer. That somebody liked or
disliked an answer says nothing of another answer to the same prompt: the champion, who gave it, would win by repeating
itself. Such labels are heard by the reward's golden set and by the canary. Pure functions over the two feeds.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from loreloop.learn.examples import Task
from loreloop.learn.files import tasks
from loreloop.learn.loop.collecting import Line, may_be_read, newest_of, person_of, said_of
from loreloop.learn.loop.reward.events import prompt_key
from loreloop.protocol.episodes import Turn
from loreloop.protocol.feedback import EDIT, Feedback
from loreloop.protocol.feedback_rules import is_golden


def labelled_prompts(
    turns: Iterable[Turn],
    statements: Iterable[Feedback],
    deleted: frozenset[str],
    trained: frozenset[str] = frozenset(),
) -> list[Task]:
    """One task for each prompt that has a right answer by a reviewer, the newest where there are several, with the
    answer as the field `answer`. Left out are prompts of `deleted` persons, turns that may not be read, and prompts
    that a candidate was trained on before they were labelled: to know these by heart is no merit. `trained` are those
    that the loop knows of itself, by their keys."""
    newest = newest_of(turns)
    # Whatever has become of a turn since it was learned from, such as that its episode is mixed.
    trained |= {prompt_key(turn.messages) for turn in newest.values() if turn.candidate is not None}
    readable = {
        turn.id: turn
        for turn in newest.values()
        if turn.messages and may_be_read(turn) and person_of(turn) not in deleted
    }
    answers: dict[str, tuple[int, Line]] = {}
    for turn_id, said in said_of(readable, statements).items():
        turn = readable[turn_id]
        key = prompt_key(turn.messages)
        for one in said:
            is_newer = key not in answers or answers[key][0] < one.number
            if one.metric == EDIT and is_golden(one) and key not in trained and is_newer:
                answers[key] = one.number, _line(turn, str(one.value))
    return list(tasks(msgspec.json.encode(line) for _, line in sorted(answers.values(), key=lambda each: each[0])))


def _line(turn: Turn, answer: str) -> Line:
    tools = {"tools": list(turn.tools)} if turn.tools else {}
    return {"messages": list(turn.messages), "answer": answer} | tools

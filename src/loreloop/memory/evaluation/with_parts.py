"""One memory with parts that were passed in, such as a learned head, counted as the other contenders are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.contenders import remembered
from loreloop.memory.evaluation.recall import turns_kept
from loreloop.memory.evaluation.study import Row, Tally, budget_of
from loreloop.memory.memory import Memory, Parts
from loreloop.memory.state import MemoryState


def rows(
    name: str,
    conversations: Sequence[Conversation],
    budgets: Sequence[float],
    count: CountTokens,
    parts: Callable[[], Parts],
) -> list[Row]:
    """A row for every budget. Each memory gets parts of its own."""
    made = []
    for budget in budgets:
        tally = Tally()
        for conversation in conversations:
            memory = Memory(MemoryState(budget_of(conversation, budget, count)), parts())
            segments = remembered(conversation, memory)
            kept = turns_kept(segments, conversation.turns)
            for number in range(len(conversation.questions)):
                tally.add(conversation, number, segments, kept)
        made.append(tally.row(name, budget))
    return made

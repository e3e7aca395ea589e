"""The conversations with which both adapters practise and are examined, and the memory that they are kept in.

A fact in every ten turns, and a budget that the facts alone fill: a memory that keeps anything else loses one. Lessons,
rewarded conversations and exams have seeds of their own.
"""

from __future__ import annotations

from loreloop.memory.evaluation import synthetic
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.memory import Settings

EXAM_SEED, LESSON_SEED, REWARDED_SEED = 0, 1_000_000, 2_000_000  # seeds count up from these
TURNS_PER_FACT = 10
TOKENS_PER_FACT = 16
SETTINGS = Settings(largest=0.3)  # in so small a budget a fact must be allowed more of it than in a real one


def facts_in(turns: int) -> int:
    """How many facts a practice conversation of so many turns holds."""
    return turns // TURNS_PER_FACT


def budget_for(turns: int) -> int:
    """The tokens of a memory that the conversation's facts alone would fill."""
    return TOKENS_PER_FACT * facts_in(turns)


def roomy_budget_for(turns: int) -> int:
    """For refills: with room for other things too, what is kept of a fact depends on how it was written."""
    return 2 * budget_for(turns)


def needles(seed: int, turns: int) -> Conversation:
    """A practice conversation of so many turns, with a fact in every ten."""
    return synthetic.needles(seed, turns, facts_in(turns))

"""The head over whole conversations: stretches of a conversation are judged again and again from the same state.

A roll takes one sampled verdict for every line of a stretch and the usual ones behind it; its reward is the share
of the questions whose evidence stands when the conversation is over. Only rolls from one state are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.recall import recall, turns_kept
from loreloop.memory.learned import CERTAIN, YES, LearnedImportance, question_of
from loreloop.memory.learning.groups import SampledAnswer, Tried, advantages
from loreloop.memory.learning.practice import SETTINGS
from loreloop.memory.memory import Memory, Parts
from loreloop.memory.refill import ExtractiveRefill
from loreloop.memory.state import MemoryState
from loreloop.memory.turns import Turn, head_of

Odds = Mapping[str, float]  # by question


class Answers(Protocol):
    """Samples `n` answers to each of the prompts, of at most so many tokens each."""

    def __call__(self, prompts: Sequence[str], n: int, most: Sequence[int]) -> list[list[SampledAnswer]]: ...


@dataclass(frozen=True)
class Rolls:
    """How a conversation is judged again: lines in a stretch, rolls from each state, the memory's budget."""

    budget: int
    stretch: int = 12
    size: int = 16


def question_about(turn: Turn) -> str:
    """The question whether to remember a turn, as the head is asked it."""
    return question_of(head_of(turn) + turn.text.strip())


def questions_of(turns: Sequence[Turn]) -> list[str]:
    """One for each different line, in order."""
    return list(dict.fromkeys(question_about(turn) for turn in turns))


def went_on(state: MemoryState, turns: Sequence[Turn], odds: Odds, count: CountTokens) -> MemoryState:
    """The state after these turns, judged by these verdicts; a line that has none is judged by its surface."""
    importance = LearnedImportance(count, lambda question: odds.get(question, 0.0))
    memory = Memory(state, Parts(count, importance, ExtractiveRefill(count)), SETTINGS)
    for turn in turns:
        memory.append(turn)
    return memory.state


def evidence_kept(state: MemoryState, conversation: Conversation) -> float:
    """Averaged over the questions that have evidence."""
    kept = turns_kept(state.segments, conversation.turns)
    found = [recall(question, kept) for question in conversation.questions]
    return fmean(value for value in found if value is not None)


def verdict_of(answer: SampledAnswer) -> float:
    """Whatever is not yes is no."""
    return CERTAIN if answer.text == YES else -CERTAIN


def tried(conversation: Conversation, rolls: Rolls, answers: Answers, count: CountTokens) -> tuple[list[Tried], float]:
    """Every stretch's sampled verdicts with their advantages, and the mean reward of all rolls."""
    questions = questions_of(conversation.turns)
    # All verdicts are sampled in one go, since a verdict depends on its line alone and not on the state.
    sampled_for = dict(zip(questions, answers(questions, rolls.size, [count(YES)] * len(questions)), strict=True))
    usual = {question: fmean(map(verdict_of, some)) for question, some in sampled_for.items()}
    found: list[Tried] = []
    every: list[float] = []
    state = MemoryState(rolls.budget)
    turns = conversation.turns
    for start in range(0, len(turns), rolls.stretch):
        stretch = turns[start : start + rolls.stretch]
        here = questions_of(stretch)
        rewards = []
        for number in range(rolls.size):
            sampled = {question: verdict_of(sampled_for[question][number]) for question in here}
            then = went_on(state, stretch, sampled, count)
            rewards.append(evidence_kept(went_on(then, turns[start + len(stretch) :], usual, count), conversation))
        # A roll's verdicts share its advantage: which of them earned it cannot be told from the reward.
        for number, advantage in enumerate(advantages(rewards)):
            found += [Tried(question, sampled_for[question][number], advantage) for question in here]
        every += rewards
        # The next stretch begins where the usual verdicts lead, whatever the rolls of this one did.
        state = went_on(state, stretch, usual, count)
    return found, fmean(every)

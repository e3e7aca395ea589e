"""The courses of both adapters from beginning to end: an exam, lessons to imitate, an exam, whole conversations of
growing length with rewards, an exam. Everything that was measured is in the record.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from loreloop.memory.condense import CountTokens
from loreloop.memory.learning import exam, judging, lessons, practice
from loreloop.memory.learning.groups import SampledAnswer, Tried, merged
from loreloop.memory.learning.lessons import Example
from loreloop.memory.learning.refilling import Refills

Tell = Callable[[str], None]


class Learner(Protocol):
    """What a course asks of an adapter."""

    def odds(self, questions: Sequence[str]) -> list[float]:
        """The log-odds that each question is answered with yes."""

    def answers(
        self, prompts: Sequence[str], n: int, most: Sequence[int], temperature: float = 1.0
    ) -> list[list[SampledAnswer]]:
        """`n` sampled answers to each prompt; `most` has the tokens that each may have."""

    def imitate(self, examples: Sequence[Example], learning_rate: float) -> float:
        """Takes one step towards the examples' answers, and gives the mean loss of a token before it, in nats."""

    def reinforce(self, tried: Sequence[Tried], learning_rate: float) -> None:
        """Takes one policy gradient step on answers that were tried."""

    def save(self, name: str) -> str:
        """Keeps the weights under a name, and gives the path by which they are sampled from."""


class Reward(msgspec.Struct, frozen=True):
    """The mean of a step over a conversation of so many turns: evidence kept for the head; for the refill, words kept
    by texts that the memory would take."""

    turns: int
    value: float


class Record(msgspec.Struct):
    """One adapter's course. `taught` is the path of the weights after the lessons, `path` of the last."""

    part: str
    losses: list[float] = []
    rewards: list[Reward] = []
    sittings: list[exam.Sitting] = []
    taught: str = ""
    path: str = ""


@dataclass(frozen=True)
class Plan:
    """Steps and sizes. `lengths` is the curriculum: turns of a conversation, and the steps that are taken at it."""

    steps: int
    batch: int
    lengths: tuple[tuple[int, int], ...]
    size: int  # answers from one state
    chances: int = 0  # chunks of a conversation that are written again and again
    lesson_rate: float = 5e-4  # of learning
    reward_rate: float = 5e-4

    def conversations(self) -> Iterator[tuple[int, int]]:
        """A seed and a length for every step with rewards."""
        turns = [turns for turns, steps in self.lengths for _ in range(steps)]
        return enumerate(turns, practice.REWARDED_SEED)


HEAD = Plan(steps=8, batch=16, lengths=((40, 3), (60, 2), (100, 1)), size=16, reward_rate=1e-4)
REFILL = Plan(
    steps=12, batch=4, lengths=((40, 2), (60, 2), (100, 2)), size=4, chances=2, lesson_rate=1e-3, reward_rate=3e-4
)


@dataclass
class Course:
    """Both courses for one learner: `count` counts tokens as its tokenizer does, `tell` is given a line of progress at
    a time."""

    learner: Learner
    count: CountTokens
    plan: Plan
    tell: Tell

    def head(self) -> Record:
        """Trains the head that judges lines: exams before, between and after, lessons, then a step with rewards for
        each conversation of the plan."""
        record = Record("head")
        # The surface alone is what the head must beat to be of any use.
        record.sittings.append(exam.of_the_head("surface", None, self.count))
        self._judge(record, "before")
        self._imitate(record, [example for seed in range(4) for example in lessons.of_the_head(seed)])
        record.taught = self.learner.save("memory-head-taught")
        self._judge(record, "after lessons")
        for seed, turns in self.plan.conversations():
            rolls = judging.Rolls(practice.budget_for(turns), size=self.plan.size)
            # Every step sees a conversation of its own, so there is nothing to learn by heart.
            conversation = practice.needles(seed, turns)
            tried, reward = judging.tried(conversation, rolls, self.learner.answers, self.count)
            self._reinforce(record, tried, Reward(turns, reward))
        self._judge(record, "after rewards")
        record.path = self.learner.save("memory-head")
        return record

    def refill(self) -> Record:
        """Trains the adapter that shortens chunks, in the same order of exams, lessons and rewards."""
        record = Record("refill")
        self._write(record, "before")
        self._imitate(record, [example for seed in range(6) for example in lessons.of_the_refill(seed, self.count)])
        record.taught = self.learner.save("memory-refill-taught")
        self._write(record, "after lessons")
        for seed, turns in self.plan.conversations():
            refills = Refills(practice.needles(seed, turns), practice.roomy_budget_for(turns), self.count)
            chances = random.Random(seed).sample(refills.chances, min(self.plan.chances, len(refills.chances)))
            most = [chance.most for chance in chances]
            answers = self.learner.answers([chance.prompt for chance in chances], self.plan.size, most)
            tried, kept = refills.tried(chances, answers)
            self._reinforce(record, tried, Reward(turns, kept))
        self._write(record, "after rewards")
        record.path = self.learner.save("memory-refill")
        return record

    def _imitate(self, record: Record, examples: Sequence[Example]) -> None:
        # A fixed order of lessons, so that two trainings differ by their adapters alone.
        shuffled = random.Random(0).sample(examples, len(examples))
        for batch in list(lessons.batches(shuffled, self.plan.batch))[: self.plan.steps]:
            record.losses.append(self.learner.imitate(batch, self.plan.lesson_rate))
            self.tell(f"{record.part}: loss {record.losses[-1]:.3f}")

    def _reinforce(self, record: Record, tried: Sequence[Tried], reward: Reward) -> None:
        record.rewards.append(reward)
        self.tell(f"{record.part}: reward {reward.value:.3f} in {reward.turns} turns")
        self.learner.reinforce(merged(tried), self.plan.reward_rate)

    def _judge(self, record: Record, when: str) -> None:
        self._sat(record, exam.of_the_head(when, self.learner.odds, self.count))

    def _write(self, record: Record, when: str) -> None:
        def greedy(prompts: Sequence[str], most: Sequence[int]) -> list[SampledAnswer]:
            return [some[0] for some in self.learner.answers(prompts, 1, most, 0.0)]

        self._sat(record, exam.of_the_refill(when, greedy, self.count))

    def _sat(self, record: Record, sitting: exam.Sitting) -> None:
        record.sittings.append(sitting)
        shown = ", ".join(f"{name} {value.mean:.3f}" for name, value in sitting.measures.items())
        self.tell(f"{record.part}, {sitting.when}: {shown}")

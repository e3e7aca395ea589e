"""What of a conversation's evidence stands in a memory, and how sure the average of it is."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from loreloop.memory.evaluation.cases import Conversation, Question
from loreloop.memory.state import Segment
from loreloop.memory.turns import Turn
from loreloop.memory.words import content_of, words_of

SHARE = 0.8  # of a turn's content words that must stand
RESAMPLES = 1000


class Estimate(msgspec.Struct, frozen=True):
    """A mean with its 95 % interval, over `n` questions."""

    mean: float
    low: float
    high: float
    n: int


def words_in(segment: Segment) -> frozenset[str]:
    """Remembered, since the same segments are looked at for question after question."""
    return words_of(segment.head + segment.text).content


def turns_kept(segments: Sequence[Segment], turns: Sequence[Turn]) -> set[int]:
    """The turns of which 80 % of the content words and all names and numbers stand in one segment made from them."""
    kept: set[int] = set()
    for segment in segments:
        have = words_in(segment)
        # Only segments made from the turn count: the same words elsewhere are another turn's.
        for number in segment.turns:
            words = words_of(turns[number].text)
            if words.marks <= have and len(words.content & have) >= SHARE * len(words.content):
                kept.add(number)
    return kept


def recall(question: Question, kept: set[int]) -> float | None:
    """The share of its evidence that is kept; None for a question without evidence."""
    if not question.evidence:
        return None
    return sum(turn in kept for turn in question.evidence) / len(question.evidence)


def answer_kept(question: Question, have: frozenset[str]) -> bool | None:
    """Whether the answer's names and numbers are among the memory's words; None if it has none."""
    marks = words_of(f"= {question.answer}").marks  # so that its first word is not taken for a sentence's
    return None if not marks else marks <= have


def gone(question: Question, segments: Sequence[Segment]) -> bool:
    """Whether no segment holds all words of something that should be gone."""
    unwanted = [content_of(words) for words in question.gone]
    return not any(words <= content_of(segment.text) for segment in segments for words in unwanted)


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Of values that have nothing to do with each other."""
    return estimate_within([values], seed)


def estimate_within(conversations: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The mean of all questions, each conversation with its own. The interval is the bootstrap's of two levels,
    percentiles of means (Efron, 1979; Davison and Hinkley, 1997, 3.8): conversations are resampled, and in each that
    was drawn its questions, since those of one conversation hang together."""
    groups = [values for values in conversations if values]
    if not groups:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    # A fixed seed, so that the same values always give the same interval.
    draw = random.Random(seed)
    means = []
    for _ in range(RESAMPLES):
        drawn = draw.choices(groups, k=len(groups))
        total = sum(sum(draw.choices(values, k=len(values))) for values in drawn)
        means.append(total / sum(map(len, drawn)))
    means.sort()
    n = sum(map(len, groups))
    mean = sum(map(sum, groups)) / n
    return Estimate(mean, means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1], n)


class Grouped:
    """Values of questions, each with its conversation."""

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = defaultdict(list)

    def add(self, conversation: Conversation, value: float) -> None:
        """One question's value."""
        self.of[conversation.name].append(value)

    def estimate(self) -> Estimate:
        """Their mean, with an interval that knows which conversation each is of."""
        return estimate_within(list(self.of.values()))

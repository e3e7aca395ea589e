"""Importance that a model has a say in: by how little it expected a passage, or by a mark that it gives.

Both scale what the surface says, by a factor around 1. So a passage for which no model may be asked any more, since the
tokens it may spend are used up, is still comparable with the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from loreloop.memory.condense import CountTokens
from loreloop.memory.generative import Sampler
from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.state import Segment, passage

Surprisal = Callable[[str, str], float]  # a context and what follows: the negative log-likelihood of that, in nats

TYPICAL_NATS = 3.5  # per token, of a small model on talk: where the factor is 1
LARGEST_FACTOR = 4.0
CONTEXT = 3  # segments before the passage that the model reads
TASK = (
    "A long conversation is to be remembered. How much will this line matter later, from 0 (small talk) to 9 (a "
    "fact, a date, a decision, a preference)? Answer with one digit.\n\n{line}\nDigit: "
)
MIDDLE, DOUBLES = 4.5, 2.25  # the mark at which the factor is 1, and how many marks double it


class _Judge:
    """What a judgement begins with, and what it has cost."""

    def __init__(self, count: CountTokens) -> None:
        self.count, self.surface = count, SurfaceImportance()
        self._spent = 0

    @property
    def tokens_spent(self) -> int:
        return self._spent


class SurprisalImportance(_Judge):
    """What a model could have guessed need not be kept. The surprisal is read token by token on average, since length
    is the surface's matter already."""

    def __init__(self, count: CountTokens, surprisal: Surprisal, typical: float = TYPICAL_NATS) -> None:
        super().__init__(count)
        self.surprisal, self.typical = surprisal, typical

    def worth(self, segment: Segment, memory: Sequence[Segment], allowance: int = 0) -> float:
        """The surface's worth times the mean surprisal in nats a token over the typical one. The context before the
        passage is left out where `allowance` does not reach for it, the model where it does not reach for the
        passage."""
        self._spent = 0
        base = self.surface.worth(segment, memory)
        # A line is surprising or not only beside what came before it.
        before = "".join(passage(one.head, one.text) for one in memory[-CONTEXT:])
        text = passage(segment.head, segment.text)
        # Counted here, since the size of a segment that is too long to stand is an estimate.
        tokens = self.count(text)
        cost = self.count(before) + tokens
        if cost > allowance:
            before, cost = "", tokens
        if cost > allowance:
            return base
        self._spent = cost
        return base * within(self.surprisal(before, text) / tokens / self.typical)


class ScoredImportance(_Judge):
    """A mark from 0 to 9 that a model writes. A text without a digit changes nothing."""

    def __init__(self, count: CountTokens, sampler: Sampler) -> None:
        super().__init__(count)
        self.sampler = sampler

    def worth(self, segment: Segment, memory: Sequence[Segment], allowance: int = 0) -> float:
        """The surface's worth times a factor that doubles with every 2.25 marks; the surface's alone where `allowance`
        does not reach for the prompt and a digit."""
        self._spent = 0
        base = self.surface.worth(segment, memory)
        prompt = TASK.format(line=segment.head + segment.text)
        cost = self.count(prompt)
        # The one token is the digit that the model writes.
        if cost + 1 > allowance:
            return base
        answer = self.sampler(prompt, 1)
        self._spent = cost + self.count(answer)
        # A model may put a space or a quotation mark before its digit.
        digit = re.search(r"[0-9]", answer)
        return base if digit is None else base * within(2 ** ((int(digit[0]) - MIDDLE) / DOUBLES))


def within(factor: float) -> float:
    """The factor, kept from a quarter to four: a verdict of a model must not outweigh all that the surface says."""
    return min(max(factor, 1 / LARGEST_FACTOR), LARGEST_FACTOR)

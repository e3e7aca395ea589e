"""Importance that an adapter has learned: a model is shown a line and asked whether to remember it, and how likely it
finds "yes" scales what the surface says.

It knows no client: a verdict is passed in as a function, which a Tinker client or an OpenAI-style one may stand behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from loreloop.memory.condense import CountTokens
from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.judged import LARGEST_FACTOR, within
from loreloop.memory.state import Segment

Verdict = Callable[[str], float]  # a question, to the log-odds that its answer is YES

QUESTION = "{line}\nRemember?"
YES, NO = " yes", " no"
READ = 2000  # characters of a line, so that a whole book in one turn stays within any model's context
CERTAIN = math.log(LARGEST_FACTOR)  # log-odds beyond which a verdict moves nothing more


def question_of(line: str) -> str:
    """Short, since the tokens that are read for a turn are bounded by the turn's own; an adapter is trained for it."""
    return QUESTION.format(line=line[:READ])


def log_odds(logprob: float) -> float:
    """Of an answer whose log-probability is known."""
    return logprob - math.log(max(-math.expm1(logprob), 1e-9))


class LearnedImportance:
    """The verdict looks at the passage alone; whether it is new is the surface's matter."""

    def __init__(self, count: CountTokens, verdict: Verdict) -> None:
        self.count, self.verdict = count, verdict
        self.surface = SurfaceImportance()
        self._spent = 0

    @property
    def tokens_spent(self) -> int:
        """Tokens that the verdict read for the last call of `worth`; 0 where the allowance did not reach."""
        return self._spent

    def worth(self, segment: Segment, memory: Sequence[Segment], allowance: int = 0) -> float:
        """The surface's worth times the odds of a yes, from a quarter to four; the surface's alone where `allowance`
        does not reach for the question."""
        self._spent = 0
        base = self.surface.worth(segment, memory)
        question = question_of(segment.head + segment.text)
        cost = self.count(question + YES)
        # The surface's worth is on the same scale, so a passage that no model may be asked of stays comparable.
        if cost > allowance:
            return base
        # Only the passage is read and no neighbours, so equal lines get equal verdicts that can be kept.
        odds = self.verdict(question)
        self._spent = cost
        return base * within(math.exp(min(odds, CERTAIN)))

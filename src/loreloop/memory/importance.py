"""How much a segment is worth keeping: the interface of all estimators, and the one that reads the surface.

An estimator sees a segment and its place, never a question that may be asked later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Protocol

import msgspec

from loreloop.memory.state import Segment
from loreloop.memory.turns import RELATIVE
from loreloop.memory.words import is_negation, is_number, words_of

FIRST_PERSON = re.compile(r"\b(?:I|I['’]\w+|[Mm]y|[Mm]ine|[Ww]e|[Ww]e['’]\w+|[Oo]ur|[Mm]e)\b")
SECOND_PERSON = re.compile(r"\b(?:you|your|yours|you['’]\w+)\b", re.IGNORECASE)
PAST = re.compile(r"\b(?:was|were|went|got|had|did|made|took|said|bought|saw|met|found|gave|\w{2,}ed)\b")
QUOTED = re.compile(r"[\"“][^\"”]{2,}[\"”]")
PREFERENCE = re.compile(
    r"\b(?:prefer|favou?rite|always|never|hate|allergic|from now on|remember|instead)\b", re.IGNORECASE
)


class Importance(Protocol):
    """`worth` gives a number ≥ 0 for every segment: what the memory loses when all of it goes. Only their order and
    their ratios matter. `tokens_read` says what a model has read and written for the last call."""

    def worth(self, segments: Sequence[Segment]) -> list[float]: ...

    @property
    def tokens_spent(self) -> int: ...


class Weights(msgspec.Struct, frozen=True):
    """Set by hand: what a feature adds to the logarithm of the worth of one content word."""

    first_person: float = 0.8
    second_person: float = -0.5
    relative_time: float = 0.5
    marks: float = 0.7  # two or more names and numbers
    answers: float = 0.5
    past: float = 0.3
    number: float = 0.4
    quoted: float = 0.8
    only_asks: float = -0.8
    preference: float = 0.3
    negation: float = -0.1
    assistant: float = -2.5


class SurfaceImportance:
    """Names, numbers, days, who speaks and of whom. A passage's worth grows with its content words up to `enough` of
    them: one long passage is not worth as much as the many short ones that fit into its place."""

    def __init__(self, weights: Weights | None = None, enough: int = 15) -> None:
        self.weights, self.enough = weights or Weights(), enough
        self.known: dict[tuple[int, int], float] = {}  # by number, and by size for excerpts

    def worth(self, segments: Sequence[Segment]) -> list[float]:
        """Each segment is read once as it came, for condensing takes away words that tell its worth; an excerpt is read
        again, since it holds less. What left the memory is forgotten here as well."""
        keys = [(segment.id, segment.tokens if segment.form == "excerpt" else 0) for segment in segments]
        known = self.known
        self.known = {k: known[k] if k in known else self.read(s) for k, s in zip(keys, segments, strict=True)}
        return [self.known[key] for key in keys]

    @property
    def tokens_spent(self) -> int:
        return 0

    def read(self, segment: Segment) -> float:
        text, weights = segment.text, self.weights
        words = words_of(text)
        features: list[tuple[bool, float]] = [
            (segment.answers, weights.answers),
            (segment.role == "assistant", weights.assistant),
            (len(words.marks) >= 2, weights.marks),
            (any(is_number(mark) for mark in words.marks), weights.number),
            (bool(FIRST_PERSON.search(text)), weights.first_person),
            (bool(SECOND_PERSON.search(text)), weights.second_person),
            (bool(RELATIVE.search(text)), weights.relative_time),
            (bool(PAST.search(text)), weights.past),
            (bool(QUOTED.search(text)), weights.quoted),
            (bool(PREFERENCE.search(text)), weights.preference),
            (text.rstrip().endswith("?") and text.count(".") + text.count("!") == 0, weights.only_asks),
            (any(map(is_negation, words.content)), weights.negation),
        ]
        size = min(len(words.content), self.enough)
        return size * math.exp(sum(weight for holds, weight in features if holds))

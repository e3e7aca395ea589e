"""How much a segment is worth keeping: the interface of all estimators, and the one that reads the surface.

An estimator sees a segment and its place, never a question that may be asked later.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import msgspec

from loreloop.memory.state import Segment
from loreloop.memory.turns import RELATIVE
from loreloop.memory.words import is_negation, is_number, words_of

FIRST_PERSON = re.compile(r"\b(?:I|I['’]\w+|[Mm]y|[Mm]ine|[Ww]e|[Ww]e['’]\w+|[Oo]ur|[Mm]e)\b")
SECOND_PERSON = re.compile(r"\b(?:you|your|yours|you['’]\w+)\b", re.IGNORECASE)
PAST = re.compile(r"\b(?:was|were|went|got|had|did|made|took|said|bought|saw|met|found|gave|\w{2,}ed)\b")
# A quotation holds no opening mark: else every one of many that nothing closes is followed to the end of the text.
QUOTED = re.compile(r"[\"“][^\"“”]{2,}[\"”]")
STATES = re.compile(r"\b[Mm]y(?: [\w'’-]+){1,4} (?:is|are|was|has changed|changed)\b")
PREFERENCE = re.compile(
    r"\b(?:prefer|favou?rite|always|never|hate|allergic|from now on|remember|instead)\b", re.IGNORECASE
)

FRESH = 0.35  # the share of new words from which on a passage counts as new


class Importance(Protocol):
    """`worth` gives a number ≥ 0: what the memory loses when all of a new segment goes. `memory` is what stands before
    it. Only ratios matter. `allowance` is how many tokens a model may read and write for this call; `tokens_spent` says
    how many it did."""

    def worth(self, segment: Segment, memory: Sequence[Segment], allowance: int = 0) -> float:
        """The worth of `segment` behind the segments of `memory`, for at most `allowance` model tokens."""

    @property
    def tokens_spent(self) -> int:
        """Tokens that a model read and wrote for the last call of `worth`."""


class Weights(msgspec.Struct, frozen=True):
    """Set by hand: what a feature adds to the logarithm of the worth of one content word."""

    first_person: float = 0.8
    second_person: float = -0.5
    relative_time: float = 0.5
    marks: float = 0.7  # two or more names and numbers
    answers: float = 0.5
    past: float = 0.3
    states: float = 0.3  # "my … is …", the form in which people say what holds of them
    number: float = 0.4
    quoted: float = 0.8
    only_asks: float = -0.8
    preference: float = 0.3
    negation: float = -0.1
    assistant: float = -2.5


class SurfaceImportance:
    """Names, numbers, days, who speaks and of whom. A passage whose words all stand in
    the memory already is worth less. Worth grows with the content words up to `enough`: one long passage is not worth
    as much as the many short ones that fit into its place."""

    def __init__(self, weights: Weights | None = None, enough: int = 15) -> None:
        self.weights, self.enough, self.standing = weights or Weights(), enough, Standing()

    @property
    def tokens_spent(self) -> int:
        """Always 0, since no model is asked."""
        return 0

    def worth(self, segment: Segment, memory: Sequence[Segment], allowance: int = 0) -> float:
        """The content words, up to `enough`, times the square of their share that is new, times e to the sum of the
        weights of the features that hold."""
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
            (bool(STATES.search(text)), weights.states),
            (bool(QUOTED.search(text)), weights.quoted),
            (bool(PREFERENCE.search(text)), weights.preference),
            (text.rstrip().endswith("?") and text.count(".") + text.count("!") == 0, weights.only_asks),
            (any(map(is_negation, words.content)), weights.negation),
        ]
        # The cap keeps one long passage from outweighing everything that would fit into its place.
        size = min(len(words.content), self.enough)
        self.standing.follow(memory)
        # Squared below: what mostly repeats the memory is nearly worthless, not just worth a little less.
        fresh = min(1.0, self.standing.novelty(words.content) / (FRESH * max(size, 1)))
        return size * fresh**2 * math.exp(sum(weight for holds, weight in features if holds))


class Standing:
    """In how many segments of a memory each word stands. It follows the memory from call to call, and a call costs what
    has changed since the last one."""

    def __init__(self) -> None:
        self.segments: dict[int, Segment] = {}  # held, so that no other object gets the identity of one of them
        self.times: Counter[str] = Counter()

    def follow(self, memory: Sequence[Segment]) -> None:
        """Counts the words of segments that came, and takes back those of segments that went, since the last call."""
        # Segments are frozen and replaced whole, so their identity tells what changed.
        now = {id(segment): segment for segment in memory}
        for key in self.segments.keys() - now.keys():
            words = words_of(self.segments[key].text).content
            self.times.subtract(words)
            for word in words:
                if not self.times[word]:
                    # Words of forgotten segments must not pile up in a memory that runs for months.
                    del self.times[word]
        for key in now.keys() - self.segments.keys():
            self.times.update(words_of(now[key].text).content)
        self.segments = now

    def novelty(self, words: frozenset[str]) -> float:
        """How many words are new: one that stands in n segments counts as 1 / (1 + n)."""
        # fsum rounds the same in whatever order a set is read.
        return math.fsum(1 / (1 + self.times[word]) for word in words)

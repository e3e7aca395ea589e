"""What is written in the place of a masked chunk, within its budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import msgspec

from loreloop.memory.condense import CountTokens, condense, excerpt
from loreloop.memory.state import Form, Segment, passage
from loreloop.memory.words import LONGEST_REMEMBERED

FORMS_CACHED = 4096  # condensed segments


@dataclass(frozen=True)
class Place:
    """Where a chunk stands: the memory's text next to it and the turns which that was made from, the chunk's condensed
    form if it is known, and how many tokens a model may read and write for it."""

    before: str = ""
    after: str = ""
    turns: tuple[int, ...] = ()
    small: Segment | None = None
    allowance: int = 0


NOWHERE = Place()


class Refill(Protocol):
    """`condensed` is the chunk at its natural small size. `refill` gives a segment of at most `budget` tokens, the
    chunk itself if it fits, or None when nothing sensible does. `tokens_spent` says what a model has read and written
    for the last refill."""

    def condensed(self, segment: Segment) -> Segment:
        """The segment at its natural small size, or itself where nothing could go."""

    def refill(self, segment: Segment, budget: int, place: Place = NOWHERE) -> Segment | None:
        """A segment of at most `budget` tokens in place of this one, or None."""

    @property
    def tokens_spent(self) -> int:
        """Tokens that a model read and wrote for the last call of `refill`."""


class ExtractiveRefill:
    """Keeps words of the chunk itself, in their order."""

    def __init__(self, count: CountTokens) -> None:
        self.count = count
        # A server opens a memory anew for each request, and would make the same forms each time. The cache is this
        # object's, which may serve many memories that are counted alike.
        self._remembered = lru_cache(maxsize=FORMS_CACHED)(self._condensed)

    @property
    def tokens_spent(self) -> int:
        """Always 0, since no model is asked."""
        return 0

    def condensed(self, segment: Segment) -> Segment:
        """The segment without its function words and what adds nothing. One that was shortened before stays as it
        is."""
        if segment.form != "whole":
            return segment
        return self._remembered(segment) if len(segment.text) <= LONGEST_REMEMBERED else self._condensed(segment)

    def _condensed(self, segment: Segment) -> Segment:
        return self._shorter(segment, condense(segment.text), "condensed") or segment

    def refill(self, segment: Segment, budget: int, place: Place = NOWHERE) -> Segment | None:
        """The segment itself, its condensed form, or an excerpt of that, whichever fits first; None where no sentence
        of it fits."""
        if segment.tokens <= budget:
            return segment
        # The memory has made the condensed form already, in most cases.
        small = place.small or self.condensed(segment)
        if small.tokens <= budget:
            return small
        # The head stays, so that it is known who spoke even in an excerpt.
        spare = budget - self.count(passage(segment.head, ""))
        # An excerpt is taken from the condensed text, which says more in each token.
        cut = self._shorter(segment, excerpt(small.text, spare, self.count), "excerpt")
        return cut if cut is not None and cut.tokens <= budget else None

    def _shorter(self, segment: Segment, text: str, form: Form) -> Segment | None:
        """None where the text is empty or no shorter."""
        tokens = self.count(passage(segment.head, text))
        if not text or tokens >= segment.tokens:
            return None
        return msgspec.structs.replace(segment, text=text, tokens=tokens, form=form, rewrites=segment.rewrites + 1)

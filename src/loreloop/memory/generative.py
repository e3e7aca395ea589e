"""Refill by a model that fills in the middle: what stands before and behind a masked chunk is shown, and the chunk
itself, unless it works blind. The model is passed in as a sampler; its text is taken only if it loses nothing hard.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from loreloop.memory.condense import CountTokens
from loreloop.memory.refill import NOWHERE, ExtractiveRefill, Place
from loreloop.memory.state import Segment, passage
from loreloop.memory.words import content_of, words_of

Sampler = Callable[[str, int], str]  # a prompt and the most tokens of the answer, to its text

GAP = "[…]"
TASK = "Below are lines of a conversation. Write what stands at […], in one line of at most {words} words.\n\n"
ORIGINAL = "\nThe line at […] said: {text}\nKeep all names, numbers, dates and negations; add nothing.\n"
ANSWER = "\n[…] = {head}"
WORDS_PER_TOKEN = 0.7  # of English text, on the safe side


class FillInTheMiddle:
    """With `blind` the model does not see the chunk: an ablation, which tells what the neighbours give away."""

    def __init__(self, count: CountTokens, sampler: Sampler, *, blind: bool = False) -> None:
        self.count, self.sampler, self.blind = count, sampler, blind
        self.extractive = ExtractiveRefill(count)
        self._spent = 0

    @property
    def tokens_spent(self) -> int:
        """Tokens that the model read and wrote for the last refill; 0 where it was not asked."""
        return self._spent

    def condensed(self, segment: Segment) -> Segment:
        """What the extractive refill makes: a chunk's size must be known long before a model is asked to fill it."""
        return self.extractive.condensed(segment)

    def refill(self, segment: Segment, budget: int, place: Place = NOWHERE) -> Segment | None:
        """The segment itself if it fits into `budget` tokens, else what the model wrote, or the extractive refill where
        that was not asked or is not taken."""
        self._spent = 0
        # What fits is never rewritten: every rewriting is a chance to lose something.
        if segment.tokens <= budget:
            return segment
        return self._written(segment, budget, place) or self.extractive.refill(segment, budget, place)

    def _written(self, segment: Segment, budget: int, place: Place) -> Segment | None:
        """None where no model may be asked, or where its text loses a name or a number, brings in one that the chunk
        does not have, or does not fit."""
        # The head is not the model's to write, and takes its tokens first.
        most = budget - self.count(passage(segment.head, ""))
        if most < 1:
            return None
        prompt = prompt_of(segment, most, place, blind=self.blind)
        cost = self.count(prompt)
        # The longest possible answer is reckoned with, since it cannot be taken back once it is written.
        if cost + most > place.allowance:
            return None
        answer = self.sampler(prompt, most)
        # A text that is then refused has cost as much as one that is taken.
        self._spent = cost + self.count(answer)
        # A segment is one line of the memory's text.
        text = " ".join(answer.split())
        tokens = self.count(passage(segment.head, text))
        if not text or tokens > budget or not faithful(text, segment.text):
            return None
        # Words that the chunk does not have may come from its neighbours: whoever forgets those must find them here.
        foreign = content_of(text) - content_of(segment.text)
        turns = tuple(sorted({*segment.turns, *place.turns})) if foreign else segment.turns
        return msgspec.structs.replace(
            segment, text=text, tokens=tokens, turns=turns, form="written", rewrites=segment.rewrites + 1
        )


def prompt_of(segment: Segment, most: int, place: Place, *, blind: bool = False) -> str:
    """What the model is asked; `most` are the tokens that its answer may have."""
    lines = f"{place.before}{segment.head}{GAP}\n{place.after}"
    original = "" if blind else ORIGINAL.format(text=segment.text)
    words = max(1, int(WORDS_PER_TOKEN * most))
    return TASK.format(words=words) + lines + original + ANSWER.format(head=segment.head)


def faithful(text: str, original: str) -> bool:
    """All names and numbers of the original stand in the text, and it has none that the original does not."""
    before, after = words_of(original), words_of(text)
    return before.marks <= after.content and after.marks <= before.content

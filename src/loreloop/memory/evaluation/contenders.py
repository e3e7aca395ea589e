"""What is put before a model in place of the past, by the memory and by its baselines, within the same budget.

All write a turn as the memory writes it. The blind ones do not know what will be asked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.minilm import Embed
from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.memory import Memory, Parts, Settings
from loreloop.memory.refill import NOWHERE, ExtractiveRefill, Place
from loreloop.memory.state import MemoryState, Segment, passage
from loreloop.memory.turns import Turn, head_of
from loreloop.memory.words import WORD, spell, words_of

STRETCH = 512  # tokens of a stretch that is compressed by itself

Blind = Callable[[Conversation, int, CountTokens], list[Segment]]


class WholeTurns(ExtractiveRefill):
    """An ablation: a turn stands as it was said, or not at all."""

    def condensed(self, segment: Segment) -> Segment:
        """The segment as it is, so that nothing is gained by opening it but its whole size."""
        return segment

    def refill(self, segment: Segment, budget: int, place: Place = NOWHERE) -> Segment | None:
        """The whole turn if it fits into `budget` tokens, else None."""
        return segment if segment.tokens <= budget else None


def segments_of(turns: Sequence[Turn], count: CountTokens) -> list[Segment]:
    """Each turn as a whole segment."""
    made = []
    for number, turn in enumerate(turns):
        head, text = head_of(turn), turn.text.strip()
        made.append(
            Segment(id=number, head=head, text=text, tokens=count(passage(head, text)), turns=(number,), role=turn.role)
        )
    return made


def remembered(conversation: Conversation, memory: Memory) -> list[Segment]:
    """The segments that stand in `memory` after every turn of the conversation was appended to it."""
    for turn in conversation.turns:
        memory.append(turn)
    return list(memory.state.segments)


def memory(conversation: Conversation, budget: int, count: CountTokens) -> list[Segment]:
    """What the memory keeps with its default parts and settings, which ask no model."""
    parts = Parts(count, SurfaceImportance(), ExtractiveRefill(count))
    return remembered(conversation, Memory(MemoryState(budget), parts, Settings()))


def memory_of_whole_turns(conversation: Conversation, budget: int, count: CountTokens) -> list[Segment]:
    """What the same memory keeps where it may drop turns but not shorten them."""
    parts = Parts(count, SurfaceImportance(), WholeTurns(count))
    return remembered(conversation, Memory(MemoryState(budget), parts, Settings()))


def first_that_fit(ordered: Iterable[Segment], budget: int, *, stop: bool = False) -> list[Segment]:
    """Takes what fits, in this order; with `stop` nothing behind the first that does not."""
    taken = []
    for segment in ordered:
        if segment.tokens <= budget:
            taken.append(segment)
            budget -= segment.tokens
        # A window of recent turns has no gaps: behind the first turn that does not fit nothing is taken.
        elif stop:
            break
    return taken


def recency(conversation: Conversation, budget: int, count: CountTokens) -> list[Segment]:
    """The newest turns, as far back as the budget reaches without a gap; they come newest first."""
    return first_that_fit(reversed(segments_of(conversation.turns, count)), budget, stop=True)


def longest(conversation: Conversation, budget: int, count: CountTokens) -> list[Segment]:
    """The longest turns that fit, the longest first: a baseline for what length alone tells."""
    return first_that_fit(sorted(segments_of(conversation.turns, count), key=lambda s: -s.tokens), budget)


def users_newest(conversation: Conversation, budget: int, count: CountTokens) -> list[Segment]:
    """The newest turns of the user that fit, and behind them those of the assistant."""
    newest = list(reversed(segments_of(conversation.turns, count)))
    return first_that_fit(sorted(newest, key=lambda s: s.role != "user"), budget)


def users_shortest(conversation: Conversation, budget: int, count: CountTokens) -> list[Segment]:
    """The shortest turns of the user that fit, and behind them those of the assistant: as many turns as the budget can
    hold."""
    segments = segments_of(conversation.turns, count)
    return first_that_fit(sorted(segments, key=lambda s: (s.role != "user", s.tokens)), budget)


def uniform(conversation: Conversation, budget: int, count: CountTokens) -> list[Segment]:
    """No allocation: every stretch of the conversation is compressed to the same share of its tokens, and within it the
    condensed turns of most names, numbers and other content words per token stand."""
    segments = segments_of(conversation.turns, count)
    # Every stretch is compressed to the same share, which is what allocation is compared with.
    share = budget / max(1, sum(segment.tokens for segment in segments))
    made: list[Segment] = []
    stretch: list[Segment] = []
    for segment in segments:
        stretch.append(segment)
        tokens = sum(one.tokens for one in stretch)
        if tokens >= STRETCH or segment is segments[-1]:
            short = [condensed(one, count) for one in stretch]
            made += first_that_fit(sorted(short, key=lambda s: -richness(s)), int(share * tokens))
            stretch = []
    return made


def condensed(segment: Segment, count: CountTokens) -> Segment:
    """The segment at its natural small size, as the extractive refill makes it."""
    return ExtractiveRefill(count).condensed(segment)


def richness(segment: Segment) -> float:
    """Content words for each token, where a name or a number counts three times."""
    words = words_of(segment.text)
    return (len(words.content) + 2 * len(words.marks)) / segment.tokens


BLIND: dict[str, Blind] = {
    "memory": memory,
    "memory, whole turns only": memory_of_whole_turns,
    "recency window": recency,
    "user's words, newest first": users_newest,
    "user's words, shortest first": users_shortest,
    "longest turns first": longest,
    "uniform compression": uniform,
}


class Ranked(Protocol):
    """The turns of one conversation; `scores` gives one for each, 0 or less where a turn has nothing to do with it."""

    def scores(self, query: str) -> list[float]:
        """A score for each turn, in the order of the turns; only the ranking matters."""


class Embedded:
    """By the cosine of embeddings."""

    def __init__(self, turns: Sequence[Turn], embed: Embed) -> None:
        self.embed = embed
        self.rows = embed([f"{turn.speaker} {turn.text}" for turn in turns])

    def scores(self, query: str) -> list[float]:
        """The cosines between the query's embedding and each turn's, from -1 to 1."""
        return [float(score) for score in self.rows @ self.embed([query])[0]]


class Bm25:
    """Okapi BM25 over the turns, with the idf that is never negative (Robertson and Zaragoza, 2009; as in Lucene)."""

    def __init__(self, turns: Sequence[Turn], k1: float = 1.5, b: float = 0.75) -> None:
        self.k1, self.b = k1, b
        self.times = [Counter(terms(f"{turn.speaker} {turn.text}")) for turn in turns]
        self.lengths = [sum(times.values()) for times in self.times]
        self.average = sum(self.lengths) / max(1, len(turns))
        self.documents = Counter(term for times in self.times for term in times)

    def scores(self, query: str) -> list[float]:
        """The BM25 score of each turn; 0 where it shares no term with the query."""
        wanted = set(terms(query))
        return [self.score(number, wanted) for number in range(len(self.times))]

    def score(self, number: int, wanted: set[str]) -> float:
        """The BM25 score of the turn with this number, summed over those of the wanted terms that it has."""
        times, n = self.times[number], len(self.times)
        norm = self.k1 * (1 - self.b + self.b * self.lengths[number] / max(self.average, 1e-9))
        total = 0.0
        for term in wanted & times.keys():
            # The one inside the logarithm keeps the idf of a very frequent term above zero.
            idf = math.log(1 + (n - self.documents[term] + 0.5) / (self.documents[term] + 0.5))
            total += idf * times[term] * (self.k1 + 1) / (times[term] + norm)
        return total


def terms(text: str) -> list[str]:
    """The text's words as they are compared, each as often as it stands."""
    return [spell(word) for word in WORD.findall(text)]


def retrieved(ranked: Ranked, segments: Sequence[Segment], query: str, budget: int, but: set[int]) -> list[Segment]:
    """The best ranked turns that fit, without those numbered in `but`; `segments` has one for every turn, in order."""
    scores = ranked.scores(query)
    order = sorted(range(len(segments)), key=lambda n: (-scores[n], n))
    return first_that_fit((segments[n] for n in order if scores[n] > 0 and n not in but), budget)

"""What a memory adds to retrieval when the question is known: the same rankings with and without it, and the memory in
different shares of the budget. Does not know where conversations come from.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.contenders import Bm25, Embedded, Ranked, condensed, memory, retrieved, segments_of
from loreloop.memory.evaluation.minilm import Embed
from loreloop.memory.evaluation.recall import Estimate, Grouped, estimate_within, turns_kept
from loreloop.memory.evaluation.study import Row, Tally, budget_of
from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.state import Segment

SHARES = (0.0, 0.125, 0.25, 0.5)  # of the budget, for the memory
CHOSEN = 0.125  # the share whose gain is told; set, as what follows, on the development conversations
BESIDE = 0.5  # how much of the better neighbour's score a turn gets: an answer stands behind its question
WORTH = 0.4  # standard deviations of a score that one of the logarithm of the worth counts as
QUERIES_CACHED = 1024
LEAST_WORTH = 0.5  # added, so that a turn of no worth has a logarithm


def standard(scores: Sequence[float]) -> list[float]:
    """The scores with mean 0 and standard deviation 1, so that those of several rankings can be added; zeros where
    they are all alike."""
    if not scores:
        return []
    mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
    return [(score - mean) / deviation if deviation else 0.0 for score in scores]


class Together:
    """Several rankings of the same turns, each counted alike, in which a turn has a share of its better neighbour's
    score."""

    def __init__(self, rankings: Sequence[Ranked], beside: float = BESIDE) -> None:
        self.rankings, self.beside = rankings, beside
        # A study asks the same question at every budget and share, and its embedding is what takes long.
        self._remembered = lru_cache(maxsize=QUERIES_CACHED)(self._scores)

    def scores(self, query: str) -> list[float]:
        """Above 0 for every turn: there is always a next best one to fill a budget with."""
        return self._remembered(query)

    def _scores(self, query: str) -> list[float]:
        each = [standard(ranking.scores(query)) for ranking in self.rankings]
        own = standard([sum(scores) for scores in zip(*each, strict=True)])
        least = min(own, default=0.0)
        around = zip([least, *own], own, [*own[1:], least], strict=False)
        return above_nothing([score + self.beside * max(before, after) for before, score, after in around])


class Weighed:
    """A ranking in which what the memory holds a turn to be worth counts too, whatever is asked."""

    def __init__(self, ranking: Ranked, worths: Sequence[float], weight: float = WORTH) -> None:
        self.ranking = ranking
        self.prior = [weight * each for each in standard([math.log(worth + LEAST_WORTH) for worth in worths])]

    def scores(self, query: str) -> list[float]:
        """Above 0 for every turn."""
        scores = standard(self.ranking.scores(query))
        return above_nothing([score + prior for score, prior in zip(scores, self.prior, strict=True)])


def above_nothing(scores: Sequence[float]) -> list[float]:
    """The scores in the same order, all above 0."""
    least = min(scores, default=0.0)
    return [score - least + 1 for score in scores]


def worths_of(segments: Sequence[Segment]) -> list[float]:
    """What the memory's estimator holds each turn to be worth when it comes, all turns before it being known."""
    importance = SurfaceImportance()
    return [importance.worth(segment, segments[:number]) for number, segment in enumerate(segments)]


@dataclass(frozen=True)
class Prepared:
    """A conversation with its rankings and its condensed turns, which serve for every budget and share."""

    conversation: Conversation
    rankings: dict[str, Ranked]
    whole: list[Segment]
    count: CountTokens

    @cached_property
    def short(self) -> list[Segment]:
        """Each turn condensed."""
        return [condensed(segment, self.count) for segment in self.whole]

    @cached_property
    def worths(self) -> list[float]:
        """The worth of each turn."""
        return worths_of(self.whole)

    @cached_property
    def kept_short(self) -> set[int]:
        """The turns that count as kept when they stand condensed."""
        return turns_kept(self.short, self.conversation.turns)


def prepared(conversation: Conversation, count: CountTokens, embed: Embed | None) -> Prepared:
    """With rankings by BM25 and, where there is a model of embeddings, by that and by both."""
    rankings: dict[str, Ranked] = {"BM25": Together([bm25 := Bm25(conversation.turns)])}
    if embed is not None:
        embedded = Embedded(conversation.turns, embed)
        rankings |= {"MiniLM": Together([embedded]), "BM25 and MiniLM": Together([bm25, embedded])}
    return Prepared(conversation, rankings, segments_of(conversation.turns, count), count)


def share_rows(
    conversations: Sequence[Conversation], budgets: Sequence[float], count: CountTokens, embed: Embed | None = None
) -> list[Row]:
    """For each budget and ranking: retrieval of condensed turns alone, and with the memory's worth in the ranking and
    the memory itself in each share of the budget."""
    every = [prepared(conversation, count, embed) for conversation in conversations]
    return [row for budget in budgets for row in _at_budget(every, budget, count)]


def _at_budget(every: Sequence[Prepared], budget: float, count: CountTokens) -> list[Row]:
    alone = {name: Tally() for name in every[0].rankings}
    beside = {(name, share): Tally() for name in alone for share in SHARES}
    for one in every:
        tokens = budget_of(one.conversation, budget, count)
        # The memory does not see the questions, so one of each size serves for all of them.
        held = {share: memory(one.conversation, int(share * tokens), count) if share else [] for share in SHARES}
        for name, ranking in one.rankings.items():
            _count(alone[name], one, ranking, [], tokens)
            for share in SHARES:
                _count(
                    beside[name, share], one, Weighed(ranking, one.worths), held[share], tokens - int(share * tokens)
                )
    rows = []
    for name, tally in alone.items():
        rows.append(tally.row(f"{name} retrieval", budget))
        rows += [beside[name, share].row(f"{name} retrieval by worth too{told(share)}", budget) for share in SHARES]
        rows.append(
            gain(beside[name, CHOSEN], tally, f"{name}: gained by worth and memory in 1/{1 / CHOSEN:g}", budget)
        )
    return rows


def gain(more: Tally, less: Tally, name: str, budget: float) -> Row:
    """A row of differences, question by question: its intervals are narrower than those of two means that share their
    questions."""

    def between(more: Grouped, less: Grouped) -> Estimate:
        pairs = [zip(values, less.of[key], strict=True) for key, values in more.of.items()]
        return estimate_within([[float(high) - float(low) for high, low in pair] for pair in pairs])

    recall, answers = between(more.recall, less.recall), between(more.answers, less.answers)
    return Row(
        contender=name, budget=budget, recall=recall, answers=answers, gone=estimate_within([]), kinds={}, seconds=0.0
    )


def told(share: float) -> str:
    """How a row calls the memory's share of the budget."""
    return f", memory in 1/{1 / share:g}" if share else ""


def _count(tally: Tally, one: Prepared, ranking: Ranked, held: Sequence[Segment], room: int) -> None:
    kept = turns_kept(held, one.conversation.turns)
    for number, question in enumerate(one.conversation.questions):
        # Turns that the memory holds already are not retrieved again, since their tokens would be spent twice.
        found = retrieved(ranking, one.short, question.text, room, kept)
        numbers = {segment.id for segment in found}
        tally.add(one.conversation, number, [*held, *found], kept | (numbers & one.kept_short))

"""Runs contenders over conversations at the same budgets, and counts what each has kept."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation import synthetic
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.contenders import (
    BLIND,
    Bm25,
    Embedded,
    Ranked,
    condensed,
    memory,
    retrieved,
    segments_of,
)
from loreloop.memory.evaluation.endurance import Pace, Survival
from loreloop.memory.evaluation.minilm import Embed
from loreloop.memory.evaluation.recall import Estimate, Grouped, answer_kept, gone, recall, turns_kept, words_in
from loreloop.memory.state import Segment


class Row(msgspec.Struct, frozen=True):
    """One contender at one budget. `budget` is a share of the conversation's tokens below or at 1, else tokens."""

    contender: str
    budget: float
    recall: Estimate
    answers: Estimate
    gone: Estimate
    kinds: dict[str, Estimate]
    seconds: float


class Report(msgspec.Struct, frozen=True):
    """Everything that one evaluation measured; endurance is of the synthetic suite only."""

    tables: dict[str, list[Row]]
    survival: list[Survival] = []
    pace: Pace | None = None


class Tally:
    """Gathers the values of one contender over conversations."""

    def __init__(self) -> None:
        self.kinds: dict[str, Grouped] = defaultdict(Grouped)
        self.recall, self.answers, self.gone = Grouped(), Grouped(), Grouped()
        self.started = time.perf_counter()

    def add(self, conversation: Conversation, number: int, segments: Sequence[Segment], kept: set[int]) -> None:
        """Counts one question by its number: the share of its evidence among the turns `kept`, and what `segments` hold
        of its answer and of what should be gone."""
        question = conversation.questions[number]
        value = recall(question, kept)
        if value is not None:
            self.kinds[question.kind].add(conversation, value)
            self.recall.add(conversation, value)
        answered = answer_kept(question, frozenset().union(*map(words_in, segments)))
        if answered is not None:
            self.answers.add(conversation, answered)
        if question.gone:
            self.gone.add(conversation, gone(question, segments))

    def row(self, contender: str, budget: float) -> Row:
        """The estimates so far as a row; its `seconds` are wall-clock time since the tally was made."""
        kinds = {kind: values.estimate() for kind, values in sorted(self.kinds.items())}
        seconds = time.perf_counter() - self.started
        return Row(
            contender=contender,
            budget=budget,
            recall=self.recall.estimate(),
            answers=self.answers.estimate(),
            gone=self.gone.estimate(),
            kinds=kinds,
            seconds=seconds,
        )


def budget_of(conversation: Conversation, budget: float, count: CountTokens) -> int:
    """The budget in tokens: as given where it is over 1, else that share of the conversation's own tokens."""
    if budget > 1:
        return int(budget)
    return int(budget * sum(segment.tokens for segment in segments_of(conversation.turns, count)))


def blind_rows(
    conversations: Sequence[Conversation], budgets: Sequence[float], count: CountTokens, contenders: Sequence[str]
) -> list[Row]:
    """Contenders that do not know the questions."""
    rows = []
    for budget in budgets:
        for name in contenders:
            tally = Tally()
            for conversation in conversations:
                segments = BLIND[name](conversation, budget_of(conversation, budget, count), count)
                kept = turns_kept(segments, conversation.turns)
                for number in range(len(conversation.questions)):
                    tally.add(conversation, number, segments, kept)
            rows.append(tally.row(name, budget))
    return rows


def knowing_rows(
    conversations: Sequence[Conversation], budgets: Sequence[float], count: CountTokens, embed: Embed | None = None
) -> list[Row]:
    """Contenders that see the question: retrieval, of whole and of condensed turns, and memory with it. Turns are
    ranked by BM25 and, where there is one, by a model's embeddings."""
    ranked: dict[str, list[Ranked]] = {"BM25": [Bm25(conversation.turns) for conversation in conversations]}
    if embed is not None:
        ranked["MiniLM"] = [Embedded(conversation.turns, embed) for conversation in conversations]
    return [
        row for budget in budgets for name in ranked for row in three(name, ranked[name], conversations, budget, count)
    ]


def three(
    name: str, ranked: Sequence[Ranked], conversations: Sequence[Conversation], budget: float, count: CountTokens
) -> list[Row]:
    """The rows of one ranking at one budget: whole turns, condensed turns, and condensed turns beside a memory in half
    of the budget."""
    alone, short_alone, both = Tally(), Tally(), Tally()
    for conversation, ranking in zip(conversations, ranked, strict=True):
        tokens = budget_of(conversation, budget, count)
        whole = segments_of(conversation.turns, count)
        short = [condensed(segment, count) for segment in whole]
        # The memory does not see the questions, so one serves for all of them.
        held = memory(conversation, tokens // 2, count)
        kept = turns_kept(held, conversation.turns)
        for number, question in enumerate(conversation.questions):
            found = retrieved(ranking, whole, question.text, tokens, set())
            alone.add(conversation, number, found, turns_kept(found, conversation.turns))
            found = retrieved(ranking, short, question.text, tokens, set())
            short_alone.add(conversation, number, found, turns_kept(found, conversation.turns))
            # Turns that the memory holds already are not retrieved again, since their tokens would be spent twice.
            more = retrieved(ranking, short, question.text, tokens - tokens // 2, kept)
            both.add(conversation, number, [*held, *more], kept | turns_kept(more, conversation.turns))
    return [
        alone.row(f"{name} retrieval", budget),
        short_alone.row(f"{name} retrieval of condensed turns", budget),
        both.row(f"memory and {name} retrieval of condensed turns, half each", budget),
    ]


SYNTHETIC: dict[str, tuple[float, int]] = {"needles": (2048, 4), "streams": (1024, 20), "consequences": (1024, 20)}


def synthetic_rows(count: CountTokens, turns: Sequence[int], contenders: Sequence[str]) -> dict[str, list[Row]]:
    """Our own suite: needles in conversations of so many turns, changing facts, consequences."""
    tables = {}
    budget, n = SYNTHETIC["needles"]
    for length in turns:
        made = [synthetic.needles(seed, length) for seed in range(n)]
        tables[f"needles, {length} turns"] = blind_rows(made, [budget], count, contenders)
    budget, n = SYNTHETIC["streams"]
    tables["changing facts"] = blind_rows([synthetic.stream(seed) for seed in range(n)], [budget], count, contenders)
    budget, n = SYNTHETIC["consequences"]
    made = [synthetic.consequences(seed) for seed in range(n)]
    tables["consequences"] = blind_rows(made, [budget], count, contenders)
    return tables


def text_of(report: Report) -> str:
    """The report as Markdown: a table for each group of rows, then endurance where it was measured."""
    parts = [f"{title}\n\n{table_of(rows)}" for title, rows in report.tables.items()]
    if report.survival:
        lines = ["| edits after the fact | stands | of those left, whole |", "|---|---|---|"]
        lines += [f"| {row.edits} | {shown(row.standing)} | {shown(row.intact)} |" for row in report.survival]
        parts.append("\n".join(lines))
    if report.pace is not None:
        pace = report.pace
        parts.append(
            f"An append takes {pace.early_ms:.2f} ms from turn 500 on and {pace.late_ms:.2f} ms at the end. "
            f"Prefilled again: {pace.reprefilled_1000:.1%} of the budget a turn over 1,000 turns, "
            f"{pace.reprefilled:.1%} over all."
        )
    return "\n\n".join(parts)


def table_of(rows: Sequence[Row]) -> str:
    """In Markdown."""
    lines = ["| | budget | evidence recall | answer kept | superseded gone |", "|---|---|---|---|---|"]
    for row in rows:
        budget = f"{row.budget:.0%}" if row.budget <= 1 else f"{row.budget:g}"
        cells = " | ".join(shown(value) for value in (row.recall, row.answers, row.gone))
        lines.append(f"| {row.contender} | {budget} | {cells} |")
    return "\n".join(lines)


def shown(value: Estimate) -> str:
    """A mean with its interval to three decimals, or a dash where nothing was counted."""
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]" if value.n else "–"

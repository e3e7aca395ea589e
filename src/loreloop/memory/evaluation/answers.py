"""What a model answers with each contender's context before it, by the score of LoCoMo's paper.

The model is passed in as a sampler. Questions are a fixed sample with as many of each category as there can be. Beside
the contenders stand the model's floor, no context at all, and its ceiling: the full conversation where the model's
window holds it, else the turns that the labels cite with their neighbours, which is called an oracle.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation.cases import Conversation, Question
from loreloop.memory.evaluation.contenders import BLIND, Blind, Bm25, condensed, memory, retrieved, segments_of
from loreloop.memory.evaluation.f1 import score
from loreloop.memory.evaluation.recall import Estimate, Grouped, turns_kept
from loreloop.memory.evaluation.study import budget_of
from loreloop.memory.evaluation.written import written_by
from loreloop.memory.generative import Sampler
from loreloop.memory.state import Segment, passage

SAMPLE = 120
LONGEST_ANSWER = 32  # tokens
NEXT_TO_EVIDENCE = 1  # turns on each side
TASK = (
    "{context}\nThese are lines of a conversation, some of them shortened. Answer the question in a few words, with "
    "the lines' own words where you can. If they do not tell, say: not mentioned.\n\nQuestion: {question}\n"
    "Short answer:"
)

Contexts = Callable[[Conversation, int, CountTokens], Callable[[Question], Sequence[Segment]]]


class AnswerRow(msgspec.Struct, frozen=True):
    """One contender at one budget (0: none was asked for). `tokens` are those of its contexts, on average."""

    contender: str
    budget: float
    f1: Estimate
    kinds: dict[str, Estimate]
    tokens: float
    seconds: float


class Asker(msgspec.Struct, frozen=True):
    """The model, what its window holds, and how many requests it is sent at once."""

    sampler: Sampler
    window: int
    at_once: int = 8


def sampled(conversations: Sequence[Conversation], n: int = SAMPLE, seed: int = 0) -> list[tuple[int, int]]:
    """Places of `n` questions, of conversation and question, drawn in turn from each category until it has no more."""
    by_kind: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, conversation in enumerate(conversations):
        for place, question in enumerate(conversation.questions):
            by_kind[question.kind].append((number, place))
    draw = random.Random(f"questions {seed}")
    for kind in sorted(by_kind):
        # Categories are shuffled in a fixed order, so that a seed always gives the same sample.
        draw.shuffle(by_kind[kind])
    taken: list[tuple[int, int]] = []
    while len(taken) < n and any(by_kind.values()):
        for kind in sorted(by_kind):
            if by_kind[kind] and len(taken) < n:
                taken.append(by_kind[kind].pop())
    # The order of drawing means nothing, so the questions are asked in that of the conversations.
    return sorted(taken)


def same_for_all(blind: Blind) -> Contexts:
    """The contexts of a contender that does not know the questions: it is run once for a conversation, and every
    question sees the same segments."""

    def contexts(
        conversation: Conversation, budget: int, count: CountTokens
    ) -> Callable[[Question], Sequence[Segment]]:
        segments = blind(conversation, budget, count)
        return lambda _: segments

    return contexts


def retrieval(conversation: Conversation, budget: int, count: CountTokens) -> Callable[[Question], Sequence[Segment]]:
    """For each question the condensed turns that BM25 ranks best and that fit into `budget` tokens, in the
    conversation's order."""
    ranked = Bm25(conversation.turns)
    short = [condensed(segment, count) for segment in segments_of(conversation.turns, count)]
    return lambda question: in_order(retrieved(ranked, short, question.text, budget, set()))


def half_and_half(
    conversation: Conversation, budget: int, count: CountTokens
) -> Callable[[Question], Sequence[Segment]]:
    """The memory in half of the budget's tokens, and behind it the condensed turns that BM25 finds for the question and
    the memory has not kept."""
    ranked = Bm25(conversation.turns)
    short = [condensed(segment, count) for segment in segments_of(conversation.turns, count)]
    # The memory is the same for every question, so it is made once and only retrieval is done anew.
    held = memory(conversation, budget // 2, count)
    kept = turns_kept(held, conversation.turns)
    return lambda question: [*held, *in_order(retrieved(ranked, short, question.text, budget - budget // 2, kept))]


def oracle(conversation: Conversation, _: int, count: CountTokens) -> Callable[[Question], Sequence[Segment]]:
    """The turns that the labels cite, whole and with their neighbours. It keeps to no budget, since it stands for the
    best that any choice of turns could do."""
    segments = segments_of(conversation.turns, count)

    def around(question: Question) -> Sequence[Segment]:
        near = {turn + step for turn in question.evidence for step in range(-NEXT_TO_EVIDENCE, NEXT_TO_EVIDENCE + 1)}
        return [segments[turn] for turn in sorted(near) if 0 <= turn < len(segments)]

    return around


def in_order(segments: Sequence[Segment]) -> list[Segment]:
    """The segments as the conversation had them, so that a model reads earlier turns first."""
    return sorted(segments, key=lambda segment: segment.turns)


def contenders_for(sampler: Sampler) -> dict[str, Contexts]:
    """By the names of their rows; all keep to a budget."""
    blind = {name: same_for_all(BLIND[name]) for name in ("memory", "recency window")}
    written = {name: same_for_all(one) for name, one in written_by(sampler).items()}
    retrieving: dict[str, Contexts] = {"retrieval of condensed turns": retrieval, "memory and retrieval": half_and_half}
    return {**blind, **retrieving, **written}


def ceiling(conversations: Sequence[Conversation], window: int, count: CountTokens) -> tuple[str, Contexts]:
    """The name and the contexts of the row that no memory is expected to beat: the full conversations where the longest
    fits into `window` tokens together with the task and an answer, else the oracle."""
    # All rows ask the same questions, so the ceiling must fit for the longest conversation too.
    longest = max(sum(segment.tokens for segment in segments_of(one.turns, count)) for one in conversations)
    if longest + count(TASK) + 4 * LONGEST_ANSWER <= window:
        return "full context", same_for_all(lambda one, _, count: segments_of(one.turns, count))
    return f"oracle context, evidence ± {NEXT_TO_EVIDENCE} turn", oracle


def answer_row(
    name: str,
    contexts: Contexts,
    conversations: Sequence[Conversation],
    budget: float,
    count: CountTokens,
    asker: Asker,
) -> AnswerRow:
    """Asks the model every sampled question with one contender's context before it, and gives the mean token F1.
    `budget` is a share of a conversation's tokens up to 1, or a number of tokens; `seconds` of the row is wall-clock
    time, the building of the contexts included."""
    started = time.perf_counter()
    places = sampled(conversations)
    sources = [conversations[number] for number in sorted({number for number, _ in places})]
    with ThreadPoolExecutor(asker.at_once) as pool:
        # Contexts may need a model as well, so the pool makes those of several conversations at once.
        made = list(pool.map(lambda one: contexts(one, budget_of(one, budget, count), count), sources))
        of_conversation = dict(zip((one.name for one in sources), made, strict=True))
        questions = [(conversations[number], conversations[number].questions[place]) for number, place in places]
        shown = [of_conversation[conversation.name](question) for conversation, question in questions]
        prompts = [prompt_of(segments, question) for segments, (_, question) in zip(shown, questions, strict=True)]
        answers = list(pool.map(lambda prompt: asker.sampler(prompt, LONGEST_ANSWER), prompts))
    kinds: defaultdict[str, Grouped] = defaultdict(Grouped)
    every = Grouped()
    for (conversation, question), answer in zip(questions, answers, strict=True):
        for values in (kinds[question.kind], every):
            values.add(conversation, score(question, answer))
    tokens = sum(segment.tokens for segments in shown for segment in segments) / max(1, len(shown))
    by_kind = {kind: values.estimate() for kind, values in sorted(kinds.items())}
    seconds = time.perf_counter() - started
    return AnswerRow(contender=name, budget=budget, f1=every.estimate(), kinds=by_kind, tokens=tokens, seconds=seconds)


def prompt_of(segments: Sequence[Segment], question: Question) -> str:
    """The whole prompt: the context's lines, the task and the question."""
    context = "".join(passage(segment.head, segment.text) for segment in segments)
    return TASK.format(context=context, question=question.text)


def answer_table(rows: Sequence[AnswerRow]) -> str:
    """In Markdown."""
    kinds = sorted({kind for row in rows for kind in row.kinds})
    lines = [f"| | budget | tokens | F1 | {' | '.join(kinds)} |", "|---|---|---|---|" + "---|" * len(kinds)]
    for row in rows:
        budget = "–" if not row.budget else f"{row.budget:.0%}" if row.budget <= 1 else f"{row.budget:g}"
        means = " | ".join(f"{row.kinds[kind].mean:.3f}" if kind in row.kinds else "–" for kind in kinds)
        f1 = f"{row.f1.mean:.3f} [{row.f1.low:.3f}, {row.f1.high:.3f}]"
        lines.append(f"| {row.contender} | {budget} | {row.tokens:.0f} | {f1} | {means} |")
    return "\n".join(lines)

"""Supervised lessons for both adapters, made from conversations of our own synthetic suite: what to answer to what.

Nothing here comes from a data set.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import msgspec

from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation import synthetic
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.contenders import segments_of
from loreloop.memory.generative import prompt_of
from loreloop.memory.learned import NO, YES, question_of
from loreloop.memory.learning.practice import LESSON_SEED
from loreloop.memory.memory import place_of
from loreloop.memory.refill import ExtractiveRefill
from loreloop.memory.state import passage
from loreloop.memory.turns import head_of
from loreloop.memory.words import content_of

END = "\n"  # of an answer


class Example(msgspec.Struct, frozen=True):
    """A prompt and the answer to imitate."""

    prompt: str
    answer: str


def worth_keeping(conversation: Conversation) -> set[int]:
    """The turns that a question is about: its evidence, and what was so until something replaced it, since nobody could
    know better when it was said."""
    kept = {turn for question in conversation.questions for turn in question.evidence}
    replaced = [content_of(value) for q in conversation.questions if q.kind != "never said" for value in q.gone]
    for number, turn in enumerate(conversation.turns):
        if any(words <= content_of(turn.text) for words in replaced):
            kept.add(number)
    return kept


def of_the_head(seed: int, turns: int = 200) -> list[Example]:
    """As many lines that are worth keeping as others, in random order."""
    # Both kinds of conversation, so that the head sees changed facts as well as new ones.
    make = synthetic.stream if seed % 2 else synthetic.needles
    conversation = make(LESSON_SEED + seed, turns)
    kept = worth_keeping(conversation)
    draw = random.Random(seed)
    others = draw.sample([number for number in range(len(conversation.turns)) if number not in kept], len(kept))
    chosen = [*kept, *others]
    draw.shuffle(chosen)
    lines = {number: head_of(conversation.turns[number]) + conversation.turns[number].text for number in chosen}
    return [Example(question_of(lines[number]), YES if number in kept else NO) for number in chosen]


def of_the_refill(seed: int, count: CountTokens, turns: int = 200) -> list[Example]:
    """Chunks among their neighbours, and what the extractive refill makes of them; as many facts as other chunks."""
    conversation = synthetic.needles(LESSON_SEED + seed, turns)
    segments = segments_of(conversation.turns, count)
    extractive = ExtractiveRefill(count)
    kept = worth_keeping(conversation)
    draw = random.Random(seed)
    others = draw.sample([number for number in range(len(segments)) if number not in kept], len(kept))
    chosen = [*kept, *others]
    draw.shuffle(chosen)
    made = []
    for number in chosen:
        segment, small = segments[number], extractive.condensed(segments[number])
        if small.tokens < segment.tokens:
            # The prompt's limit is what the right answer needs, so that the adapter learns to heed it.
            most = small.tokens - count(passage(segment.head, ""))
            prompt = prompt_of(segment, most, place_of(segments, number))
            made.append(Example(prompt.rstrip(), f" {small.text}{END}"))
    return made


def batches(lessons: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Whole batches only."""
    for start in range(0, len(lessons) - size + 1, size):
        yield lessons[start : start + size]

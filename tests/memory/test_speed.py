"""What an append costs, told by the characters that are counted, so that it is the same on every machine."""

import random
from collections.abc import Callable
from time import thread_time

import pytest

from loreloop.memory.condense import BEGINNING, MARGIN, tokens_beyond
from loreloop.memory.evaluation import synthetic
from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.memory import Memory, Parts
from loreloop.memory.refill import ExtractiveRefill
from loreloop.memory.state import MemoryState
from loreloop.memory.turns import Turn
from loreloop.memory.words import words_of
from tests.memory.conversations import count

BUDGET = 4096


class Counting:
    """The usual counter, which notes how much text it was given."""

    def __init__(self) -> None:
        self.characters = 0

    def __call__(self, text: str) -> int:
        self.characters += len(text)
        return count(text)


def messages(n: int, role: str = "assistant") -> list[Turn]:
    """Such as people get from models: paragraphs of some thousand characters, with names, lists and code."""
    draw = random.Random("messages")
    return [
        Turn(role, "\n".join(f"- {number}.{n}: {synthetic.small_talk(draw, 'user')}" for n in range(60 + number % 40)))
        for number in range(n)
    ]


def memory_with(counter: Callable[[str], int], refill: ExtractiveRefill | None = None) -> Memory:
    return Memory(MemoryState(BUDGET), Parts(counter, SurfaceImportance(), refill or ExtractiveRefill(counter)))


def test_of_a_long_turn_no_text_is_counted_thrice() -> None:
    """Its beginning, its condensed form, and what is taken of that."""
    counter = Counting()
    memory = memory_with(counter)
    for turn in messages(40):
        before = counter.characters
        memory.append(turn)
        assert counter.characters - before < 2 * len(turn.text) + 10 * 0.12 * BUDGET


@pytest.mark.parametrize("most", [0, 1, 50, 400])
def test_a_count_is_exact_as_far_as_it_matters(most: int) -> None:
    for text in ("", "a", "word " * 30, "x" * 5000, "word " * 1000, "incomprehensibilities " * 200, "1 " * 3000):
        told = tokens_beyond(text, most, count)
        assert told == count(text) if count(text) <= most else told > most
    counter = Counting()
    tokens_beyond("1 " * 10_000, 100, counter)
    assert counter.characters <= BEGINNING * 100
    assert MARGIN < 16, "what is left of the smallest budgets"


def test_forms_that_another_request_needed_are_not_made_again() -> None:
    """A server opens a memory anew for each request."""

    counter = Counting()

    def counted(refill_of: Callable[[], ExtractiveRefill]) -> int:
        state, before = MemoryState(1000), counter.characters
        for turn in synthetic.needles(0, 200).turns:
            memory = Memory(state, Parts(counter, SurfaceImportance(), refill_of()))
            memory.append(turn)
            state = memory.state
        return counter.characters - before

    shared = ExtractiveRefill(counter)
    assert counted(lambda: shared) < 0.5 * counted(lambda: ExtractiveRefill(counter))


@pytest.mark.slow
def test_a_long_append_takes_little_more_than_reading_its_words() -> None:
    """A ratio of processor times, which the load of a machine leaves alone. It was 5.7 when this was written."""
    memory, spent, reading = memory_with(count), 0.0, 0.0
    for turn in messages(60):
        memory.append(turn)
    for turn in messages(120)[60:]:
        started = thread_time()
        words_of(f"{turn.text} ")  # another text, so that nothing is remembered of it
        between = thread_time()
        memory.append(turn)
        reading += between - started
        spent += thread_time() - between
    assert spent < 10 * reading

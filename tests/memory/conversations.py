"""Small conversations and counters for the memory's tests."""

import re

from loreloop.memory.importance import SurfaceImportance
from loreloop.memory.memory import Memory, Parts, Settings
from loreloop.memory.refill import ExtractiveRefill
from loreloop.memory.state import MemoryState
from loreloop.memory.turns import Turn


def count(text: str) -> int:
    """A token per word and mark; a long word has one per four characters, as in real tokenizers."""
    return sum(1 + (len(piece) - 1) // 4 for piece in re.findall(r"\w+|[^\w\s]|\n", text))


def memory_of(budget: int, settings: Settings | None = None) -> Memory:
    return Memory(MemoryState(budget), Parts(count, SurfaceImportance(), ExtractiveRefill(count)), settings)


def small_talk(number: int) -> Turn:
    topics = ("the weather", "the traffic", "dinner", "that film", "the garden")
    return Turn(
        "user" if number % 2 == 0 else "assistant", f"So, how do you feel about {topics[number % 5]} these days?"
    )

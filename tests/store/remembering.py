"""A process that appends turns to a memory and saves it after each, until it is killed; it says on stdout which turns
were saved."""

from __future__ import annotations

import sys
from pathlib import Path

from loreloop.memory.persistence import from_json, to_json
from loreloop.memory.turns import Turn
from loreloop.store.memories import MemoriesOf
from loreloop.store.store import Store
from tests.memory.conversations import memory_of

BUDGET = 300


def append_for_ever(folder: Path, key_id: str) -> None:
    memories = MemoriesOf(Store(folder, "os"), key_id, "ann")
    saved = memories.load("talk")
    memory = memory_of(BUDGET)
    revision = 0
    if saved is not None:
        memory.state, revision = from_json(saved.data), saved.revision
    for number in range(memory.state.n_turns, 1_000_000):
        memory.append(Turn("user", f"My locker number {number} is {7 * number}."))
        revision = memories.save("talk", to_json(memory.state), after=revision).revision
        print(f"saved {number}", flush=True)


if __name__ == "__main__":
    append_for_ever(Path(sys.argv[1]), sys.argv[2])

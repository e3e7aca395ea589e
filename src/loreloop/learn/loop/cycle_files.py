"""The folder of one cycle: the lines that a candidate is trained on, and whose they are.

Written whole or not at all; the lines go when the cycle has ended, and what stays is which turns they came from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from loreloop.learn.loop.collecting import Collected, Used
from loreloop.learn.loop.reward.events import prompt_key
from loreloop.learn.loop.state import read, synced, written
from loreloop.protocol.episodes import Turn

# The lines of general prompts beside those of methods, and the keys of these prompts, which stay.
GENERAL, GENERAL_KEYS = "rehearsed.jsonl", "general.json"
UNKNOWN = "unknown"  # a prompt of which neither the key was noted nor the turn is left


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """What a cycle learns from: turns by method, and where the feeds stood. `attempt` says which of several attempts at
    weights of a person's own it is; a cycle is known by its number. `from_start`: its candidate begins where the loop
    began."""

    used: dict[str, tuple[Used, ...]]
    heard: int
    turns_seen: int
    attempt: str = ""
    from_start: bool = False

    @property
    def turns(self) -> tuple[str, ...]:
        """All turns, each once; those too whose answers others are held against."""
        return tuple(dict.fromkeys(turn for one in self.all_used for turn in (one.turn, *one.worse)))

    @property
    def all_used(self) -> tuple[Used, ...]:
        """Every line's turn, of all methods."""
        return tuple(one for each in self.used.values() for one in each)

    @property
    def persons(self) -> frozenset[str]:
        """All persons whose turns these are, and all who said what was learned of them."""
        return frozenset(person for one in self.all_used for person in (one.person, *one.others))


def lay_out(folder: Path, collected: Collected, methods: Sequence[str], data: Data) -> None:
    """Writes a cycle's folder, in the place of what an attempt that died has left."""
    new = folder.with_name(folder.name + ".new")
    for old in (new, folder):
        shutil.rmtree(old, ignore_errors=True)
    new.mkdir(parents=True)
    for method in methods:
        lines = [msgspec.json.encode(line) for line in collected.lines[method]]
        written(new / f"{method}.jsonl", b"\n".join(lines) + b"\n")
    written(new / "data.json", msgspec.json.encode(data))
    # The folder has its name only when everything is in it.
    new.rename(folder)
    synced(folder.parent)


def data_of(folder: Path) -> Data:
    """What a cycle learns from, or has learned from."""
    return read(folder / "data.json", Data)


def drop_lines(folder: Path) -> None:
    """Takes away what persons said, once it is not needed any more; numbers and ids stay."""
    for file in folder.glob("*.jsonl"):
        file.unlink()


def drop_names(folder: Path) -> None:
    """Takes away whose turns and words they were, once nobody's withdrawal can change anything; the turns' ids stay."""
    if not (folder / "data.json").exists():
        return
    data = data_of(folder)
    if data.persons - {""}:
        used = {
            method: tuple(msgspec.structs.replace(one, person="", others=()) for one in each)
            for method, each in data.used.items()
        }
        written(folder / "data.json", msgspec.json.encode(msgspec.structs.replace(data, used=used)))


def with_prompts(loop: Path, turns: Callable[[], Iterable[Turn]]) -> None:
    """Notes the prompts of what was learned by a version that has not noted them, so far as their turns are still
    there. `turns` is asked only where there is such."""
    files = [*loop.glob("cycles/*/data.json"), *loop.glob("persons/*/*/data.json")]
    data_by_file = {file: data_of(file.parent) for file in files}
    old = {file: data for file, data in data_by_file.items() if not all(one.prompt for one in data.all_used)}
    if not old:
        return
    keys = {turn.id: prompt_key(turn.messages) for turn in turns() if turn.messages}
    for file, data in old.items():
        used = {
            method: tuple(
                msgspec.structs.replace(one, prompt=one.prompt or keys.get(one.turn, UNKNOWN)) for one in each
            )
            for method, each in data.used.items()
        }
        written(file, msgspec.json.encode(msgspec.structs.replace(data, used=used)))


def trained_prompts(loop: Path) -> frozenset[str]:
    """The keys of all prompts that weights of a loop's folder were trained on, those of single persons too: also where
    their turns have expired since, or have another fate than `used`."""
    files = [*loop.glob("cycles/*/data.json"), *loop.glob("persons/*/*/data.json")]
    found = {one.prompt for file in files for each in data_of(file.parent).used.values() for one in each}
    for file in (*loop.glob(f"cycles/*/{GENERAL_KEYS}"), *loop.glob(f"persons/*/*/{GENERAL_KEYS}")):
        found |= read(file, set[str])
    return frozenset(found) - {"", UNKNOWN}


def heard_in(loop: Path, cycles: Callable[[int], bool]) -> dict[str, int]:
    """Up to which statement corrections of each turn were learned by some of a loop's cycles, by the turns' ids."""
    found: dict[str, int] = {}
    for file in loop.glob("cycles/*/data.json"):
        # What a death has left beside the cycles' own folders is none of them.
        if file.parent.name.isdigit() and cycles(int(file.parent.name)):
            data = data_of(file.parent)
            found |= {one.turn: max(data.heard, found.get(one.turn, 0)) for one in data.used.get("sft", ())}
    return found

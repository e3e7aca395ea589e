"""A loop's own folder: where it stands, in one file that is replaced whole, and its decisions, a line each.

A decision is written and on the disk before anything is done by it, and the state moves only when that is done. So a
loop that died anywhere finds its decision again, and does what it says once more instead of deciding anew. Knows no
server and no rule of any decision.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from loreloop.learn.runner import Position, StepRecord
from loreloop.protocol.errors import Conflict, ServerError

S = TypeVar("S")
Stage = Literal["idle", "collecting", "training", "gate", "canary"]
Verdict = Literal["passed", "rejected", "promoted", "rolled_back", "void", "adopted", "stopped"]


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """Weights that a deployment may answer with: `target` as it is deployed, `state` as training goes on from it (None:
    the bare base), and the cycle that has made it, 0 for what was there before."""

    target: str
    state: str | None = None
    cycle: int = 0


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Where a loop stands. `heard` and `turns_seen` are the numbers of the newest statement and turn that a cycle has
    begun with; `since` and `since_version` say when, and with which version of the deployment, the canary began.
    `from_start`: the cycle's candidate begins where the loop began, and not with the champion. `left` are corrections
    for which the last cycle had no time."""

    champion: Revision
    base_model: str
    previous: Revision | None = None
    candidate: Revision | None = None
    stage: Stage = "idle"
    cycle: int = 0
    heard: int = 0
    turns_seen: int = 0
    since: float = 0.0
    since_version: int = 0
    night: str = ""  # the date of the last nightly cycle
    from_start: bool = False
    left: int = 0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision with its numbers, and why nothing was promoted yet, or what was. `key` makes it final: there is
    never a second one of the same key."""

    key: str
    cycle: int
    stage: str
    verdict: Verdict
    sentence: str
    numbers: dict[str, Any] = {}
    at: float = 0.0
    candidate: str | None = None
    champion: str | None = None
    person: str | None = None


class LoopFolder:
    """The folder of one loop. Only who holds its lock may change it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state_file, self.decisions_file = path / "state.json", path / "decisions.jsonl"
        self.paused_file, self.why_file = path / "paused", path / "why.json"
        self.proposed_file, self.retrain_file = path / "proposed.json", path / "retrain"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one process; Conflict where another has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("ab") as file:
            try:
                # The system takes the lock away when its holder dies, however that comes.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(f"Another process runs the loop of {self.path}; stop that one first.") from None
            yield

    def load(self) -> State | None:
        """Where the loop stands; None for one that has not begun."""
        return read(self.state_file, State) if self.state_file.exists() else None

    def save(self, state: State) -> None:
        """Keeps a state in the place of the one before, so that it lasts."""
        written(self.state_file, msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n")

    def decisions(self) -> list[Decision]:
        """All decisions in their order. A last line that a killed process has not finished is no decision."""
        return list(lines_of(self.decisions_file, Decision))

    def decided(self, key: str) -> Decision | None:
        """The decision of a key, if there is one."""
        return next((one for one in self.decisions() if one.key == key), None)

    def decide(self, decision: Decision) -> Decision:
        """Keeps a decision; gives the one that stands, which is the earlier one where there was one."""
        if (found := self.decided(decision.key)) is not None:
            return found
        appended(self.decisions_file, msgspec.json.encode(decision) + b"\n")
        return decision

    def cycle(self, number: int) -> Path:
        """The folder of a cycle."""
        return self.path / "cycles" / f"{number:04d}"

    @property
    def paused(self) -> bool:
        """Whether no cycle may begin, and no canary may be promoted, until it is taken back."""
        return self.paused_file.exists()

    def pause(self, paused: bool) -> None:
        """Pauses the loop, or lets it go on."""
        self._flag(self.paused_file, paused)

    @property
    def to_retrain(self) -> bool:
        """Whether the next cycle begins at once, and where the loop began."""
        return self.retrain_file.exists()

    def retrain(self, asked: bool) -> None:
        """Asks for such a cycle, or takes that back."""
        self._flag(self.retrain_file, asked)

    def _flag(self, file: Path, is_set: bool) -> None:
        if is_set:
            self.path.mkdir(parents=True, exist_ok=True)
            written(file, b"")
        else:
            file.unlink(missing_ok=True)

    def propose(self, revision: Revision) -> None:
        """Asks the loop to try weights that were made elsewhere; it does when it has nothing else in hand."""
        self.path.mkdir(parents=True, exist_ok=True)
        written(self.proposed_file, msgspec.json.encode(revision))

    def proposed(self) -> Revision | None:
        """Weights that shall be tried next, if there are any."""
        return read(self.proposed_file, Revision) if self.proposed_file.exists() else None

    def withdraw(self) -> None:
        """Forgets what was proposed."""
        self.proposed_file.unlink(missing_ok=True)

    def tell(self, sentence: str, **numbers: Any) -> None:
        """Keeps why nothing was promoted yet, for `status`. Of no worth after a crash, so it is not forced to disk."""
        new = self.why_file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode({"sentence": sentence, "numbers": numbers}))
        new.replace(self.why_file)

    def why(self) -> dict[str, Any]:
        """The last that was told: `sentence` and `numbers`."""
        if not self.why_file.exists():
            return {"sentence": "Nothing has happened yet.", "numbers": {}}
        found: dict[str, Any] = msgspec.json.decode(self.why_file.read_bytes())
        return found


class RunFolder:
    """A folder of one training run: a `Progress` of the runner that keeps the measures too."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.metrics = path, path / "position.json", path / "metrics.jsonl"
        path.mkdir(parents=True, exist_ok=True)

    async def load(self) -> Position | None:
        """Where the run stands, or None for one that has not begun. Measures behind that go, and are taken again."""
        position = read(self.file, Position) if self.file.exists() else None
        done = position.step if position else 0
        kept = [record for record in lines_of(self.metrics, StepRecord) if record.step <= done]
        written(self.metrics, b"".join(msgspec.json.encode(record) + b"\n" for record in kept))
        return position

    async def save(self, position: Position) -> None:
        """Keeps a position so that it lasts."""
        written(self.file, msgspec.json.encode(position))

    def tell(self, record: StepRecord) -> None:
        """Keeps what a step has measured."""
        with self.metrics.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")


def read(file: Path, kind: type[S]) -> S:
    """A file's value. ServerError where it is not what this code writes."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise ServerError(
            f"{file} is damaged ({error}); take it from a backup, or begin a loop in a new folder."
        ) from None


def lines_of(file: Path, kind: type[S]) -> Iterator[S]:
    """The values of a file with one a line; a line that was not finished is left out."""
    if file.exists():
        for line in file.read_bytes().splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                yield msgspec.json.decode(line, type=kind)


def written(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and so that it is there after a power cut."""
    new = file.with_name(file.name + ".new")
    with new.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)
    synced(file.parent)


def appended(file: Path, line: bytes) -> None:
    """Adds a line so that it lasts. Behind a line that was not finished, a new one begins."""
    torn = file.exists() and file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
    with file.open("ab") as opened:
        opened.write(b"\n" * torn + line)
        opened.flush()
        os.fsync(opened.fileno())
    synced(file.parent)


def synced(folder: Path) -> None:
    """Makes the names in a folder last: a file's own sync does not keep its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def key_of(state: State, stage: str) -> str:
    """By which a decision is final: one for each stage of a cycle."""
    return f"{state.cycle}:{stage}"

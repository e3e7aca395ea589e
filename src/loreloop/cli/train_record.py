"""What `loreloop train` keeps in its folder: what was asked for, where the run stands, and what it has measured."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from loreloop.learn.runner import Position, StepRecord


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run as it was asked for. `command` repeats it; files are known by their contents."""

    command: str
    method: str
    plan: dict[str, Any]
    settings: dict[str, Any]
    data_sha256: str | None  # of tasks that an environment makes there is no file
    eval_sha256: str | None
    version: str


BUDGETS = ("budget_tokens", "kl_most")  # say when a run pauses and nothing of what it does until then


class Folder:
    """A folder of one run. It is a `Progress` of the runner, and keeps its measures one a line."""

    held: int | None = None  # the handle by which this process has the folder to itself

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_file, self.position_file = path / "run.json", path / "position.json"
        self.metrics_file = path / "metrics.jsonl"

    def open(self, record: Record) -> None:
        """Begins a run here, or goes on with the one that is here. BadRequest where that is another. A run that pauses
        for its budget goes on with a larger one."""
        from loreloop.protocol.errors import BadRequest

        if self.has_begun():
            before = msgspec.json.decode(self.record_file.read_bytes(), type=Record)
            for what in ("method", "plan", "settings", "data_sha256", "eval_sha256"):
                if _compared(before, what) != _compared(record, what):
                    raise BadRequest(
                        f"{self.path} holds another run, whose {what} {_difference(before, record, what)}; name "
                        f"another folder with --out. What is there goes on by: {before.command}"
                    )
            if before.settings == record.settings:
                return
        self.path.mkdir(parents=True, exist_ok=True)
        written(self.record_file, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")

    def hold(self) -> None:
        """Keeps other processes away from the folder, until this one ends however it does. BadRequest where another
        has it. Without the means of POSIX, as on Windows and on file systems without locks, nobody is kept away."""
        from loreloop.protocol.errors import BadRequest

        self.path.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:
            return
        # A file of its own, since those of the run are replaced while it goes on; opened for writing, as NFS wants it.
        try:
            self.held = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise BadRequest(
                f"Another process is training into {self.path}; wait for it, or name another folder with --out."
            ) from None
        except OSError:
            # A folder that nobody may write to says so at its first file.
            self.release()

    def release(self) -> None:
        """Lets others have the folder."""
        if self.held is not None:
            os.close(self.held)
            self.held = None

    def has_begun(self) -> bool:
        """Whether a run here has done anything. One that was refused before its first step leaves only its record,
        which must not be in the way of the command that is then given rightly."""
        return self.record_file.exists() and (self.position_file.exists() or self.metrics_file.exists())

    async def load(self) -> Position | None:
        """Where the run stands; what was measured after that will be measured again, and goes."""
        from loreloop.learn.runner import Position

        if not self.position_file.exists():
            self.metrics_file.unlink(missing_ok=True)
            return None
        position = msgspec.json.decode(self.position_file.read_bytes(), type=Position)
        kept = [record for record in self.measured() if record.step <= position.step]
        written(self.metrics_file, b"".join(msgspec.json.encode(record) + b"\n" for record in kept))
        return position

    async def save(self, position: Position) -> None:
        """Keeps a position so that it lasts."""
        written(self.position_file, msgspec.json.format(msgspec.json.encode(position), indent=1) + b"\n")

    def add(self, record: StepRecord) -> None:
        """Keeps what a step has measured."""
        with self.metrics_file.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")

    def measured(self) -> Iterator[StepRecord]:
        """What all steps have measured so far. A line that a killed process has not finished is left out."""
        from loreloop.learn.runner import StepRecord

        if self.metrics_file.exists():
            for line in self.metrics_file.read_bytes().splitlines():
                with contextlib.suppress(msgspec.DecodeError):
                    yield msgspec.json.decode(line, type=StepRecord)


def _compared(record: Record, what: str) -> Any:
    """What must be the same for a run to go on."""
    value = getattr(record, what)
    return {name: each for name, each in value.items() if name not in BUDGETS} if what == "settings" else value


def _difference(before: Record, now: Record, what: str) -> str:
    one, other = _compared(before, what), _compared(now, what)
    if isinstance(one, dict) and isinstance(other, dict):
        name = next(name for name in {**one, **other} if one.get(name) != other.get(name))
        return f"has {name} = {one.get(name)!r} in place of {other.get(name)!r}"
    return f"is {one} in place of {other}"


def written(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and so that it is there after a power cut."""
    new = file.with_suffix(".new")
    with new.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)


def sha256(file: Path | None) -> str | None:
    """Of a file's contents; None for none."""
    if file is None:
        return None
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

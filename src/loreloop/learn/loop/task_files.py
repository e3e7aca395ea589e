"""The files of tasks that a loop.toml names, for as long as a loop runs: golden prompts and suites.

People change them beside the loop, so a file that has become unreadable is waited for. Knows no feed and no stage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loreloop.learn.examples import Task
from loreloop.learn.files import read_file, tasks
from loreloop.learn.loop.reward.events import prompt_key
from loreloop.protocol.episodes import Message
from loreloop.protocol.errors import BadRequest, Unavailable


def tasks_of(file: Path, what: str) -> tuple[Task, ...]:
    """The tasks of a file. Unavailable while it is not there or is wrong: somebody is about to mend it, and what was
    trained meanwhile is not thrown away for that. `what` names it in the sentence."""
    try:
        return tuple(read_file(file, tasks))
    except BadRequest as error:
        raise Unavailable(
            f"The {what} {file} cannot be read any more: {error.message}; mend it, and the loop goes on."
        ) from None


def key_of_task(task: Task) -> str:
    """A task's prompt as recorded turns are known by."""
    return prompt_key(task.item["messages"])


def without(found: Iterable[Task], keys: Collection[str]) -> list[Task]:
    """Tasks but for those of some prompts."""
    return [task for task in found if key_of_task(task) not in keys]


@dataclass
class GoldenFile:
    """`file` is None for a loop without one. It is read at once, so that a loop does not begin with one that cannot be
    read: BadRequest, with the line. Later it is read anew whenever somebody has changed it, and waited for."""

    file: Path | None
    known: tuple[Task, ...] = ()
    known_keys: frozenset[str] = frozenset()
    seen: tuple[int, int] = (0, 0)  # when it was changed, and its size, as it was read last

    def __post_init__(self) -> None:
        if self.file is not None:
            seen = _seen(self.file)
            self._take(tuple(read_file(self.file, tasks)), seen)

    def tasks(self) -> tuple[Task, ...]:
        """The golden prompts as the file has them now, each with the right answer as `answer`. Unavailable as
        `tasks_of`."""
        if self.file is not None:
            # Looked at before it is read: a change meanwhile is found the next time.
            seen = _seen(self.file) if self.file.exists() else None
            if seen != self.seen:
                self._take(tasks_of(self.file, "golden file"), seen or self.seen)
        return self.known

    def keys(self) -> frozenset[str]:
        """The same by their keys: the loop must not train on what somebody is about to hold out."""
        self.tasks()
        return self.known_keys

    def holds(self, messages: Sequence[Message]) -> bool:
        """Whether a prompt stands in the file."""
        return prompt_key(messages) in self.keys()

    def _take(self, found: tuple[Task, ...], seen: tuple[int, int]) -> None:
        self.known, self.known_keys, self.seen = found, frozenset(map(key_of_task, found)), seen


def _seen(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size

"""The loop's own golden file, read anew whenever somebody has changed it. Knows no feed and no stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loreloop.learn.files import read_file, tasks
from loreloop.learn.loop.reward.events import prompt_key
from loreloop.protocol.episodes import Message
from loreloop.protocol.errors import BadRequest, Unavailable


@dataclass
class GoldenFile:
    """`file` is None for a loop without one. It is read at once, so that a loop does not begin with one that cannot be
    read: BadRequest, with the line."""

    file: Path | None
    known: frozenset[str] = frozenset()
    seen: tuple[int, int] = (0, 0)  # when it was changed, and its size, as it was read last

    def __post_init__(self) -> None:
        if self.file is not None:
            self._read(self.file)

    def keys(self) -> frozenset[str]:
        """The prompts by their keys, as the file has them now. Unavailable while it is not there or is wrong: the loop
        waits, since it must not train on what somebody is about to hold out."""
        if self.file is None:
            return self.known
        try:
            found = self.file.stat()
            if (found.st_mtime_ns, found.st_size) != self.seen:
                self._read(self.file)
        except (OSError, BadRequest) as error:
            said = error.message if isinstance(error, BadRequest) else error.strerror
            raise Unavailable(
                f"The golden file {self.file} cannot be read any more: {said}; mend it, and the loop goes on."
            ) from None
        return self.known

    def holds(self, messages: Sequence[Message]) -> bool:
        """Whether a prompt stands in the file."""
        return prompt_key(messages) in self.keys()

    def _read(self, file: Path) -> None:
        found = file.stat()  # before it is read: a change meanwhile is found the next time
        self.known = frozenset(prompt_key(task.item["messages"]) for task in read_file(file, tasks))
        self.seen = (found.st_mtime_ns, found.st_size)

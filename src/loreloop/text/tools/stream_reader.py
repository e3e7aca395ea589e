"""A text that is read while it grows: reading steps are generators that yield where they need more of it.

So a parser is written as if the whole text were there. What has been read is dropped, except behind a mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from typing import TypeVar

LONGEST_NAME = 512  # characters; names are held back until they are whole

T = TypeVar("T")
Steps = Generator[None, None, T]

_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*"')
_SPACE = re.compile(r"\s*")


class NotACall(Exception):
    """What is being read cannot be a call; the reader stands where that was noticed, however the text was cut."""


class Markers:
    """Strings that are looked for together, none of which begins another."""

    def __init__(self, *strings: str) -> None:
        self.strings = tuple(string for string in strings if string)
        self.pattern = re.compile("|".join(map(re.escape, self.strings)))


class StreamReader:
    """Text that grows by `push`, with a place up to which it was read. Methods that give `Steps` yield where they
    need more text."""

    def __init__(self) -> None:
        self.text, self.position, self.ended = "", 0, False
        self.marked: list[str] | None = None  # what was read behind the mark and is in `text` no more
        self.since = 0  # the mark, or the beginning of `text` if the mark is further back
        self.n_marked = 0  # characters in `marked`

    def push(self, text: str) -> None:
        """Adds text behind what there is, and drops what was read unless it lies behind the mark."""
        # Kept as pieces and joined once, since a call of many tokens would otherwise be copied with each of them.
        if self.marked is not None:
            self.marked.append(self.text[self.since : self.position])
            self.n_marked += self.position - self.since
        self.text, self.position, self.since = self.text[self.position :] + text, 0, 0

    def mark(self) -> None:
        """Begins to keep what is read, until `unmark` gives it back."""
        self.marked, self.since, self.n_marked = [], self.position, 0

    @property
    def n_read(self) -> int:
        """How much was read since the mark."""
        return self.n_marked + self.position - self.since

    def unmark(self) -> str:
        """What was read since the mark."""
        read = "".join([*(self.marked or ()), self.text[self.since : self.position]])
        self.marked = None
        return read

    def more(self) -> Steps[bool]:
        """Waits for more text; False at the end."""
        if self.ended:
            return False
        yield
        return True

    def space(self) -> Steps[list[str]]:
        """Reads white space, in pieces."""
        pieces = []
        while True:
            begin, self.position = self.position, _SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]
            pieces.append(self.text[begin : self.position])
            if self.position < len(self.text) or not (yield from self.more()):
                return pieces

    def begins(self, string: str) -> Steps[bool]:
        """Whether the unread text begins with `string`; reads it if so."""
        while True:
            head = self.text[self.position : self.position + len(string)]
            if head == string:
                self.position += len(string)
                return True
            if not string.startswith(head) or not (yield from self.more()):
                return False

    def expect(self, *choices: str) -> Steps[str]:
        """Reads one of the strings, behind white space."""
        yield from self.space()
        for choice in choices:
            if (yield from self.begins(choice)):
                return choice
        raise NotACall

    def ending(self, string: str) -> Steps[bool]:
        """Reads `string` behind white space; False if the text ends within or before it."""
        yield from self.space()
        if (yield from self.begins(string)):
            return True
        if not string.startswith(self.text[self.position :]):
            raise NotACall
        self.position = len(self.text)
        return False

    def string(self) -> Steps[str]:
        """Reads a short JSON string, behind white space."""
        yield from self.space()
        while True:
            found = _STRING.match(self.text, self.position, self.position + LONGEST_NAME)
            if found:
                break
            wrong = self.text[self.position : self.position + 1] not in ('"', "")
            if wrong or len(self.text) - self.position >= LONGEST_NAME or not (yield from self.more()):
                raise NotACall
        try:
            value = str(json.loads(found.group()))
            value.encode()  # half a character, which JSON can spell, is a ValueError
        except ValueError:
            raise NotACall from None
        self.position = found.end()
        return value

    def short(self, end: str, without: str) -> Steps[str]:
        """Reads the text before `end`, and `end`; refuses a long one, and one with `without` in it."""
        most = LONGEST_NAME + len(end)
        while (found := self.text.find(end, self.position, self.position + most)) < 0:
            if len(self.text) - self.position >= most or not (yield from self.more()):
                raise NotACall
        before = self.text[self.position : found]
        if without in before:
            raise NotACall
        self.position = found + len(end)
        return before

    def search(self, markers: Markers) -> tuple[int, str]:
        """Where the first marker stands and which it is; if there is none, where the text ends that is certainly no
        part of one, and an empty string."""
        found = markers.pattern.search(self.text, self.position) if markers.strings else None
        return (found.start(), found.group()) if found else (self._certain(markers.strings), "")

    def _certain(self, strings: Sequence[str]) -> int:
        """Where a string begins that may still be growing, or the end."""
        longest = max(map(len, strings), default=1)
        for position in range(max(self.position, len(self.text) - longest + 1), len(self.text)):
            if any(string.startswith(self.text[position:]) for string in strings):
                return position
        return len(self.text)

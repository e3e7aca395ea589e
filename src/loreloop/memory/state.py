"""What a memory is: frozen segments in the order of the conversation, and what they have cost so far.

A segment's tokens are those of its text and the line break behind it, so the memory's tokens are their sum.
"""

from __future__ import annotations

from typing import Literal

import msgspec

VERSION = 1

CONTINUED = "\n "

Form = Literal["whole", "condensed", "excerpt", "written"]


class Segment(msgspec.Struct, frozen=True):
    """One passage of the memory: `head` says who spoke, and survives every rewriting of the `text`. `turns` are the
    numbers of all turns it was made from, `rewrites` how often its text was replaced, `answers` whether the turn before
    it asked something, `worth` what an estimator of importance gave it when it came."""

    id: int
    head: str
    text: str
    tokens: int
    turns: tuple[int, ...]
    role: str
    form: Form = "whole"
    rewrites: int = 0
    pinned: bool = False
    answers: bool = False
    worth: float = 0.0


class Costs(msgspec.Struct, frozen=True):
    """All in tokens but `edits`. `reprefilled` counts what stood behind the first change of each edit: the part of the
    context whose cached keys a served model must compute again. `model` counts what a model read and wrote for us."""

    appended: int = 0
    reprefilled: int = 0
    model: int = 0
    edits: int = 0


class MemoryState(msgspec.Struct, frozen=True):
    """Everything that must survive; `n_turns` counts all turns ever appended.
    `asked` says that the last turn asked something: what follows may be its answer."""

    budget: int
    segments: tuple[Segment, ...] = ()
    n_turns: int = 0
    next_id: int = 0
    asked: bool = False
    last_time: float | None = None
    costs: Costs = Costs()
    version: int = VERSION

    @property
    def tokens(self) -> int:
        """The tokens of all segments, each with its head and line break."""
        return sum(segment.tokens for segment in self.segments)


def passage(head: str, text: str) -> str:
    """A segment as the memory's text has it, with the line break that its tokens include. Its further lines begin with
    a space: only a head stands at the left edge, so no text can pose as another speaker's."""
    # Whatever any reader may take for a line break counts as one.
    return f"{head}{CONTINUED.join(text.splitlines())}\n"


def text_of(state: MemoryState) -> str:
    """The memory as it is put before a model: each segment begins a line."""
    return "".join(passage(segment.head, segment.text) for segment in state.segments)

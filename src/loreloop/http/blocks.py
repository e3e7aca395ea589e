"""A reply as blocks one behind the other (thought, text, call), as Anthropic's and OpenAI's newer API tell it.

A call opens when it is known to be whole: a broken one is text. Pure.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from loreloop.text.tool_calls import Broken, CallArguments, CallBegins, CallEnds, Content, Piece, Thinking


@dataclass
class Block:
    """`text` is the text, the thought, or the JSON of a call's arguments."""

    kind: Literal["thinking", "text", "call"]
    text: str = ""
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Opened:
    index: int
    block: Block


@dataclass(frozen=True)
class Grown:
    index: int
    text: str


@dataclass(frozen=True)
class Closed:
    index: int
    block: Block


BlockEvent = Opened | Grown | Closed


@dataclass
class Blocks:
    """Pieces in, events out; `done` holds all blocks so far."""

    done: list[Block] = field(default_factory=list)
    is_open: bool = False
    calls: dict[int, Block] = field(default_factory=dict)
    broken: bool = False

    def add(self, pieces: Sequence[Piece]) -> list[BlockEvent]:
        events: list[BlockEvent] = []
        for piece in pieces:
            match piece:
                case Content(text):
                    events += self._grow("text", text)
                case Thinking(text):
                    events += self._grow("thinking", text)
                case CallBegins(index, call_id, name):
                    self.calls[index] = Block("call", "", call_id or f"call_{uuid.uuid4().hex[:24]}", name)
                case CallArguments(index, text):
                    self.calls[index].text += text
                case CallEnds(index):
                    call = self.calls[index]
                    events += [*self.end(), *self._open(call), Grown(len(self.done) - 1, call.text), *self.end()]
                case Broken(text):
                    self.broken = True
                    events += self._grow("text", text)
        return events

    def end(self) -> list[BlockEvent]:
        """Closes the block that is open, if one is."""
        if not self.is_open:
            return []
        self.is_open = False
        return [Closed(len(self.done) - 1, self.done[-1])]

    def _open(self, block: Block) -> list[BlockEvent]:
        self.done.append(block)
        self.is_open = True
        return [Opened(len(self.done) - 1, block)]

    def _grow(self, kind: Literal["thinking", "text"], text: str) -> list[BlockEvent]:
        events: list[BlockEvent] = []
        if not self.is_open or self.done[-1].kind != kind:
            events += [*self.end(), *self._open(Block(kind))]
        self.done[-1].text += text
        return [*events, Grown(len(self.done) - 1, text)]

    @property
    def has_calls(self) -> bool:
        return any(block.kind == "call" for block in self.done)

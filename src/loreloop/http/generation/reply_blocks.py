"""A reply as blocks one behind the other (thought, text, call), as Anthropic's and OpenAI's newer API tell it.

A broken call is text. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from loreloop.protocol.sampling import SampledSequence
from loreloop.protocol.token_ids import unpack_ids
from loreloop.text.replies import BROKEN_CALL, CUT_CALL, Reply, WholeReply, new_call_id, with_note
from loreloop.text.tools.tool_calls import (
    Broken,
    CallArguments,
    CallBegins,
    CallCut,
    CallEnds,
    Content,
    Piece,
    Thinking,
)


@dataclass
class Block:
    """`text` is the text, the thought, or the JSON of a call's arguments; `cut`: its end is missing."""

    kind: Literal["thinking", "text", "call"]
    text: str = ""
    call_id: str = ""
    name: str = ""
    cut: bool = False


@dataclass(frozen=True)
class Opened:
    """A block has begun; it is still empty."""

    index: int
    block: Block


@dataclass(frozen=True)
class Grown:
    """The block at `index` has grown by `text`."""

    index: int
    text: str


@dataclass(frozen=True)
class Closed:
    """The block is complete, or will not grow any more."""

    index: int
    block: Block


BlockEvent = Opened | Grown | Closed


@dataclass
class Blocks:
    """Pieces in, events out; `done` holds all blocks so far, `warning` says what is wrong with them."""

    done: list[Block] = field(default_factory=list)
    is_open: bool = False
    note: str | None = None  # known before the reply
    warning: str | None = None

    def __post_init__(self) -> None:
        self.warning = self.note

    def add(self, pieces: Sequence[Piece]) -> list[BlockEvent]:
        """Takes further pieces and gives the events that they make."""
        events: list[BlockEvent] = []
        for piece in pieces:
            match piece:
                case Content(text):
                    events += self._grow("text", text)
                case Thinking(text):
                    events += self._grow("thinking", text)
                case CallBegins(_, call_id, name):
                    # A call begins a block of its own, whatever was open before.
                    events += [*self.end(), *self._open(Block("call", "", call_id or new_call_id(), name))]
                case CallArguments(_, text):
                    events += self._grow("call", text)
                case CallEnds():
                    events += self.end()
                case CallCut():
                    self.warning = with_note(self.note, CUT_CALL)
                    events += self.end(cut=True)
                case Broken(text):
                    self.warning = with_note(self.note, BROKEN_CALL)
                    events += self._grow("text", text)
        return events

    def end(self, *, cut: bool = False) -> list[BlockEvent]:
        """Closes the block that is open, if one is."""
        if not self.is_open:
            return []
        self.is_open, self.done[-1].cut = False, cut
        return [Closed(len(self.done) - 1, self.done[-1])]

    def _open(self, block: Block) -> list[BlockEvent]:
        self.done.append(block)
        self.is_open = True
        return [Opened(len(self.done) - 1, block)]

    def _grow(self, kind: Literal["thinking", "text", "call"], text: str) -> list[BlockEvent]:
        events: list[BlockEvent] = []
        # A text between two thoughts makes three blocks: clients show them in the order in which they were written.
        if not self.is_open or self.done[-1].kind != kind:
            events += [*self.end(), *self._open(Block(kind))]
        self.done[-1].text += text
        return [*events, Grown(len(self.done) - 1, text)]

    @property
    def ends_in_calls(self) -> bool:
        """Whether there are calls to make, all of them whole."""
        calls = [block for block in self.done if block.kind == "call"]
        return bool(calls) and not any(call.cut for call in calls)


def read_blocks(reply: Reply, sequence: SampledSequence, note: str | None) -> tuple[Blocks, WholeReply]:
    """The blocks of a finished sample, whose last one is still open, and the reply that they are the blocks of; `reply`
    has read nothing yet."""
    blocks, heard = Blocks(note=note), WholeReply(note=note)
    for token in unpack_ids(sequence.tokens).tolist():
        pieces = reply.push(token)
        blocks.add(pieces)
        heard.add(pieces)
    pieces = reply.flush()
    blocks.add(pieces)
    heard.add(pieces)
    return blocks, heard

"""A memory's state as JSON and back, and where it may be kept. Which store that is, whoever uses the memory says."""

from __future__ import annotations

from typing import Protocol

import msgspec

from loreloop.memory.state import VERSION, MemoryState
from loreloop.protocol.errors import BadRequest


class Saved(msgspec.Struct, frozen=True):
    """`revision` counts the saves of one memory; who saves says which one it goes on from."""

    data: bytes
    revision: int


class StateStore(Protocol):
    """`load` gives None for an unknown id. `save` raises Conflict when the stored revision is not `after` (0: none
    yet), so of two writers one is refused; it either stores all of `data` or leaves what was there."""

    def load(self, id: str) -> Saved | None: ...

    def save(self, id: str, data: bytes, after: int) -> Saved: ...

    def delete(self, id: str) -> None: ...


def to_json(state: MemoryState) -> bytes:
    return msgspec.json.encode(state)


def from_json(data: bytes) -> MemoryState:
    """Raises BadRequest for anything but a state that this version wrote."""
    try:
        state = msgspec.json.decode(data, type=MemoryState)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadRequest(
            f"The memory's saved state cannot be read: {error}. Restore the file from a copy, or begin anew."
        ) from error
    if state.version != VERSION:
        raise BadRequest(
            f"The memory's saved state has version {state.version}, and this loreloop reads version {VERSION}. Use the "
            "version that wrote it."
        )
    wrong = what_is_wrong(state)
    if wrong:
        raise BadRequest(f"The memory's saved state is broken: {wrong}. Restore the file from a copy, or begin anew.")
    return state


def what_is_wrong(state: MemoryState) -> str:
    """ "" for a state that a memory can have."""
    ids = [segment.id for segment in state.segments]
    turns = [turn for segment in state.segments for turn in segment.turns]
    if any(segment.tokens < 0 for segment in state.segments):
        return "a segment has a negative number of tokens"
    if state.tokens > state.budget:
        return f"its segments have {state.tokens} tokens, over its budget of {state.budget}"
    if ids != sorted(set(ids)) or any(not 0 <= id < state.next_id for id in ids):
        return "its segments are not in order"
    if any(not 0 <= turn < state.n_turns for turn in turns) or not all(segment.turns for segment in state.segments):
        return "a segment names turns that never were"
    return ""

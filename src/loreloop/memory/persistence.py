"""A memory's state as JSON and back. Where that is kept, whoever uses the memory says."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from loreloop.memory.state import VERSION, MemoryState
from loreloop.protocol.errors import BadRequest

T = TypeVar("T")


def to_json(state: MemoryState) -> bytes:
    """The state as UTF-8 JSON, which `from_json` reads back without loss."""
    return msgspec.json.encode(state)


def from_json(data: bytes) -> MemoryState:
    """Raises BadRequest for anything but a state that this version wrote."""
    state = decoded(data, MemoryState)
    if state.version != VERSION:
        raise BadRequest(
            f"The memory's saved state has version {state.version}, and this loreloop reads version {VERSION}. Use the "
            "version that wrote it."
        )
    # Types alone do not make a state: a file that was edited by hand may break what every append relies on.
    wrong = what_is_wrong(state)
    if wrong:
        raise BadRequest(f"The memory's saved state is broken: {wrong}. Restore the file from a copy, or begin anew.")
    return state


def decoded(data: bytes, kind: type[T]) -> T:
    """What was saved, as a value of this kind; BadRequest where the JSON is none of it."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadRequest(
            f"The memory's saved state cannot be read: {error}. Restore the file from a copy, or begin anew."
        ) from error


def what_is_wrong(state: MemoryState) -> str:
    """ "" for a state that a memory can have."""
    ids = [segment.id for segment in state.segments]
    turns = [turn for segment in state.segments for turn in segment.turns]
    if any(segment.tokens < 0 for segment in state.segments):
        return "a segment has a negative number of tokens"
    if state.tokens > state.budget:
        return f"its segments have {state.tokens} tokens, over its budget of {state.budget}"
    # Ids grow with the conversation, so their order is that of the segments.
    if ids != sorted(set(ids)) or any(not 0 <= id < state.next_id for id in ids):
        return "its segments are not in order"
    if any(not 0 <= turn < state.n_turns for turn in turns) or not all(segment.turns for segment in state.segments):
        return "a segment names turns that never were"
    return ""

"""Where a request names its memory, and what it says of its turns beside their text: times, captions, pins.

Knows no dialect's bodies, and not what a memory is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from starlette.requests import Request

from loreloop.memory.kept import Note
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.openai_rest import MemoryField
from loreloop.text.conversation import Picture, Turn

HEADER, METADATA = "x-loreloop-memory", "loreloop_memory"
LONGEST_NUMBER = 10  # digits of a budget, and of seconds since 1970


@dataclass(frozen=True)
class Wanted:
    """Where a request may name its memory: a field of its body, its metadata, and a header; and whose memory it is."""

    field: MemoryField | None
    user: object = None
    metadata: Mapping[str, Any] | None = None
    other_past: bool = False  # the request goes on from an earlier answer already

    def of(self, request: Request) -> MemoryField | None:
        """The memory that a request names in its body, its header or its metadata; BadRequest where they differ."""
        fields = [self.field] if self.field else []
        for text in (request.headers.get(HEADER), (self.metadata or {}).get(METADATA)):
            fields += [] if text is None else [field_of(text)]
        if any(other != fields[0] for other in fields):
            raise BadRequest(
                f"The request names its memory twice and differently: {fields[0].id!r} and {fields[-1].id!r}."
            )
        if fields and self.other_past:
            raise BadRequest("previous_response_id and a memory both stand for the past; send one of them.")
        return fields[0] if fields else None


def field_of(text: object) -> MemoryField:
    """`id`, `id;budget=4096`, `id;budget=4096;pin` or `id;time=1700000000`, as it stands in a header; spaces may stand
    around what is between semicolons, and nowhere else."""
    id, *settings = (piece.strip() for piece in str(text).split(";"))
    value: dict[str, object] = {"id": id}
    for setting in settings:
        name, _, given = (piece.strip() for piece in setting.partition("="))
        # What is no number stays a text, which the field's own check then names.
        known = {"budget": "budget_tokens", "pin": "pin", "time": "time"}
        value[known.get(name, name[:80])] = True if setting == "pin" else number_in(given)
    try:
        return msgspec.convert(value, MemoryField)
    except msgspec.ValidationError as error:
        raise BadRequest(
            f"A memory is named as id;budget=4096 in {HEADER} or metadata's {METADATA}, and {str(text)[:80]!r} is not "
            f"so: {error}."
        ) from None


def number_in(text: str) -> int | str:
    """The whole number that a text is, or its beginning; Python refuses to read thousands of digits."""
    return int(text) if text.isdecimal() and len(text) <= LONGEST_NUMBER else text[:80]


def captioned(turns: Sequence[Turn], captions: Sequence[str]) -> tuple[Turn, ...]:
    """The turns with a caption for each of their images, in order. BadRequest where the two do not go together."""
    n_images = sum(len(turn.pictures) for turn in turns)
    if captions and len(captions) != n_images:
        raise BadRequest(
            f"The memory's field has {len(captions)} captions, and the request {n_images} images; give one for each, "
            'in order, and "" where there is none.'
        )
    left = iter(captions or [""] * n_images)
    return tuple(
        replace(turn, parts=tuple(replace(p, caption=next(left)) if isinstance(p, Picture) else p for p in turn.parts))
        for turn in turns
    )


@dataclass(frozen=True)
class Clock:
    """`now` in seconds since 1970, and the time of the memory's last turn, before which none may lie."""

    now: float
    last: float | None

    def time(self) -> float:
        """When something is said now; a client's clock may be ahead of ours."""
        return max(self.now, self.last or self.now)


def notes_of(field: MemoryField, turns: Sequence[Turn], known: int, clock: Clock) -> list[Note]:
    """For each turn behind the `known` ones, when it was said and whether it is pinned; `turns` are without
    instructions.

    Without a time what stands behind the last answer is said now, and of what came before nobody knows. BadRequest for
    times that are not one for each message.
    """
    if isinstance(field.time, tuple):
        if len(field.time) != len(turns):
            raise BadRequest(
                f"The memory's field has {len(field.time)} times, and the request {len(turns)} messages beside "
                "instructions; give one for each, or null, or one number for the new ones."
            )
        times: list[float | None] = list(field.time[known:])
    else:
        given = clock.time() if field.time is None else field.time
        answered = max((n for n, turn in enumerate(turns, 1) if turn.role == "assistant"), default=0)
        times = [given if n >= answered else None for n in range(known, len(turns))]
    return [
        Note(time, pinned=field.pin and turn.role == "user") for time, turn in zip(times, turns[known:], strict=True)
    ]

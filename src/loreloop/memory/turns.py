"""A turn of a conversation as it is handed to the memory, and the head of the line that stands for it."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime

import msgspec

from loreloop.protocol.errors import BadRequest

# The years 1 to 9999, in seconds since 1970: what the days of the calendar go to.
EARLIEST, LATEST = -62_135_596_800, 253_402_300_800
ROLES = ("system", "user", "assistant", "tool")
RELATIVE = re.compile(
    r"\b(?:yesterday|today|tonight|tomorrow|last|next|ago|recently|lately|weekend|this (?:morning|week|month|year))\b",
    re.IGNORECASE,
)


class Turn(msgspec.Struct, frozen=True):
    """`time` is in seconds since 1970 (UTC), `speaker` a name where the role alone does not tell who speaks."""

    role: str
    text: str
    speaker: str = ""
    time: float | None = None


def check_turn(turn: Turn, last_time: float | None) -> None:
    """Raises BadRequest for what cannot be a turn; nothing has changed then."""
    if turn.role not in ROLES:
        raise BadRequest(f"A turn's role is one of {', '.join(ROLES)}; {turn.role!r} is not.")
    if not isinstance(turn.text, str):
        raise BadRequest(
            f"A turn's text is a string, and this one is {type(turn.text).__name__}. Give an image's caption, or a "
            "marker, in its place."
        )
    # What is no number at all fails here too: no later time would lie before it.
    if turn.time is not None and not EARLIEST <= turn.time < LATEST:
        raise BadRequest(
            f"A turn's time is in seconds since 1970, and {turn.time} is no time of the years 1 to 9999. Give it in "
            "seconds, not in milliseconds, or leave it out."
        )
    if turn.time is not None and last_time is not None and turn.time < last_time:
        raise BadRequest(
            f"This turn's time, {turn.time}, lies before the last turn's, {last_time}. Append turns in order, or leave "
            "the time out."
        )


def speaker_in(turn: Turn) -> str:
    """The speaker's name on one line and without colons, which end a head; the role where there is no name, or where
    the name is that of a role, with which one would speak for another."""
    name = " ".join(turn.speaker.replace(":", " ").split())
    # Letters of another width, and characters that nobody sees, make no other name to a reader.
    seen = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    # Behind a name only a day stands in brackets, so what is before a bracket is what a reader takes for the name.
    taken_for = re.split("[(:]", seen)[0].strip().lower()
    return turn.role if taken_for in ("", *ROLES, "developer") else name


def head_of(turn: Turn) -> str:
    """Who speaks. The day is written down only where the text counts from it ("yesterday"), since it
    costs as many tokens as a short fact does."""
    who = speaker_in(turn)
    if turn.time is not None and RELATIVE.search(turn.text):
        # In UTC, so that the same conversation gives the same memory on every machine.
        day = datetime.fromtimestamp(turn.time, UTC)
        who = f"{who} ({day.day} {day:%b %Y})"
    return f"{who}: "

"""Which question of the user's an answer leaves open: it is worth keeping until somebody comes back to it.

It goes by the surface, and only by the answer that follows: whether a question is answered much later is not seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from loreloop.memory.state import Segment
from loreloop.memory.words import sentences

DEFERS = re.compile(
    r"\b(?:(?:do not|don['’]t|cannot|can['’]t) (?:know|say|tell|answer)|not sure|no idea|(?:come|get) back to|find out"
    r"|look into|look (?:it|that|this) up|let you know)\b",
    re.IGNORECASE,
)
MOST_SENTENCES = 4  # of an answer that only puts off; in a longer one the same words are about something else
OPEN = 5.0  # what an open question is worth, times what its surface says; set by hand


def left_open(segments: Sequence[Segment], new: Segment) -> int | None:
    """The position of the question that `new` puts off, or None."""
    if new.role != "assistant" or not segments or not new.answers:
        return None
    asked = segments[-1]
    # Only the turn just before: an answer says nothing of older questions.
    is_question = asked.role == "user" and asked.turns[-1] == new.turns[0] - 1 and "?" in asked.text
    short = len(sentences(new.text)) <= MOST_SENTENCES
    return len(segments) - 1 if is_question and short and DEFERS.search(new.text) else None

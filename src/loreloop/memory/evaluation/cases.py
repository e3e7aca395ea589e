"""A conversation to be remembered, and the questions that are asked of it afterwards."""

from __future__ import annotations

import msgspec

from loreloop.memory.turns import Turn


class Question(msgspec.Struct, frozen=True):
    """`evidence` are the numbers of the turns that answer it, `gone` what a good memory no longer holds: values that
    were replaced or taken back, or were never said."""

    kind: str
    text: str = ""
    answer: str = ""
    evidence: tuple[int, ...] = ()
    gone: tuple[str, ...] = ()


class Conversation(msgspec.Struct, frozen=True):
    """A named conversation with its turns in order, and the questions that are asked once it is over."""

    name: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]

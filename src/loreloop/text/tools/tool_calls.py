"""The words about tool calls: tools, calls, and the pieces that a reply falls into while it comes.

Values only; how a family of models writes calls is in `tool_formats.py`, how they are read in `tool_reader.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A function that a model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]
    strict: bool = False

    def as_function(self) -> dict[str, Any]:
        """The form in which chat templates expect tools."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Call:
    """A finished call; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer's own text."""

    text: str


@dataclass(frozen=True)
class Thinking:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """`call_id` is None where the model's format has no ids."""

    index: int
    call_id: str | None
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the arguments' JSON text, as the model wrote it."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnds:
    """The call is whole, its arguments are a valid JSON object."""

    index: int


@dataclass(frozen=True)
class CallCut:
    """The text ended within the call, or went on as none: its arguments are what was told of them."""

    index: int


@dataclass(frozen=True)
class Broken:
    """What looked like a call and is none, word for word; a call that began before it and has not ended is void.

    `n_told` of its characters came before as pieces of that call; `cut`: nothing is wrong but that the text ended.
    """

    text: str
    n_told: int = field(default=0, compare=False)
    cut: bool = field(default=False, compare=False)


Piece = Content | Thinking | CallBegins | CallArguments | CallEnds | CallCut | Broken

"""What all graders share: what they are given, what they may use, and what they give. Knows no kind of grader."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from loreloop.learn.rewards.reward import Answer
from loreloop.learn.rewards.sandbox import CodeSandbox, Limits
from loreloop.text.conversation import Conversation, Turn
from loreloop.text.tools.json_scan import strict_json

Kind = Literal[  # OpenAI's names for what can go wrong, without `_error`
    "formula_parse",
    "sample_parse",
    "truncated_observation",
    "unresponsive_reward",
    "invalid_variable",
    "python_grader_server",
    "python_grader_runtime",
    "model_grader_server",
    "model_grader_refusal",
    "model_grader_parse",
    "other",
]
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MISSING = object()  # output_json of an answer that is no JSON


@dataclass(frozen=True)
class Trouble:
    """Why a grader gave no reward."""

    kind: Kind
    details: str


class GraderTrouble(Exception):
    """Raised within a grader; `graded` turns it into a grade."""

    def __init__(self, kind: Kind, details: str) -> None:
        super().__init__(details)
        self.trouble = Trouble(kind, details)


@dataclass(frozen=True)
class Grade:
    """A grader's reward, those of its parts by name, and the tokens that each asked model took. With `trouble`, the
    value is 0 and says nothing."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    trouble: Trouble | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What is graded: the answer, as OpenAI's `sample` too, and the `item` of the task."""

    answer: Answer
    item: Mapping[str, Any]
    sample: Mapping[str, Any]
    prompt: Conversation | None = None


def given_of(answer: Answer, item: Mapping[str, Any], prompt: Conversation | None = None) -> Given:
    """An answer with the fields that graders read: `output_text`, `output_json` where the text is JSON, `output_tools`
    and `choices`."""
    tools = [
        {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.calls
    ]
    message = {"role": "assistant", "content": answer.text, "tool_calls": tools or None}
    choice = {"index": 0, "message": message, "finish_reason": "stop" if answer.ended else "length"}
    sample = {"output_text": answer.text, "output_json": _json(answer.text), "output_tools": tools, "choices": [choice]}
    return Given(answer, item, sample, prompt)


def _json(text: str) -> object:
    try:
        return strict_json(text)
    except ValueError:
        return MISSING


@dataclass(frozen=True)
class Question:
    """A conversation for a served model. With `schema`, the answer is JSON that fits it."""

    model: str
    turns: tuple[Turn, ...]
    schema: Mapping[str, Any] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    effort: str | None = None


@dataclass(frozen=True)
class Said:
    """A served model's answer, and the tokens that question and answer took."""

    text: str
    tokens: int = 0


Chat = Callable[[Question], Awaitable[Said]]
Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]  # texts to rows of length 1


@dataclass(frozen=True)
class Means:
    """What graders may use: a sandbox for code, a way to ask served models, and sentence embeddings. A grader that
    needs what is not there gives trouble that says so."""

    sandbox: CodeSandbox | None = None
    chat: Chat | None = None
    embed: Embed | None = None
    limits: Limits = field(default_factory=Limits)
    asker: str = ""  # in whose name; the sandbox lets askers take turns


class Grader(Protocol):
    """A checked grader. `grade` raises GraderTrouble where it can give no reward."""

    @property
    def name(self) -> str:
        """What the grader calls itself."""
        ...

    async def grade(self, given: Given, means: Means) -> Grade:
        """The reward of what is given."""
        ...


class Form(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """The fields that every grader's JSON has beside its type."""

    name: str


async def graded(grader: Grader, given: Given, means: Means) -> Grade:
    """The grade, in which trouble is told and a value that is no number counts as trouble."""
    try:
        grade = await grader.grade(given, means)
    except GraderTrouble as error:
        return Grade(0.0, trouble=error.trouble)
    if grade.trouble is None and not math.isfinite(grade.value):
        return Grade(0.0, grade.parts, Trouble("other", f"the grader {grader.name!r} gave {grade.value}"), grade.tokens)
    return grade

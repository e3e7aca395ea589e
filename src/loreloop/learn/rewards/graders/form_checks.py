"""Checks of ours on an answer's form: a pattern, a JSON schema, a length."""

from __future__ import annotations

import inspect
import json
import re
from functools import partial
from typing import Annotated, Any, Literal

from msgspec import Meta

from loreloop.learn.rewards.graders import schema_check
from loreloop.learn.rewards.graders.grader import Form, Given, Grade, GraderTrouble, Means
from loreloop.learn.rewards.graders.in_sandbox import result_of
from loreloop.learn.rewards.graders.similarity import words_of
from loreloop.learn.rewards.graders.templates import check_template, filled
from loreloop.protocol.errors import outcome_of
from loreloop.text.tools.json_scan import strict_json

MAX_SCHEMA = 50_000  # characters of a schema as JSON
SHORT = 10_000  # characters of a value that is checked in this process
OUTPUT = "{{ sample.output_text }}"
SEARCH = """import re
def found(pattern, text, flags, whole):
    match = (re.fullmatch if whole else re.search)(pattern, text, flags)
    return None if match is None else [match[0], *match.groups()][:2]
"""
Count = Annotated[int, Meta(ge=0, le=1 << 31)]


class Regex(Form, frozen=True, kw_only=True, tag="regex"):
    """1 where Python's regular expression finds something, and, with a `reference`, its first group (or else all that
    it found) is that. It runs in the sandbox, whose time bounds it."""

    pattern: Annotated[str, Meta(min_length=1, max_length=10_000)]
    input: str = OUTPUT
    reference: str | None = None
    ignore_case: bool = False
    whole: bool = False  # the whole text must fit

    def __post_init__(self) -> None:
        check_template("input", self.input)
        check_template("reference", self.reference or "")
        compiled = outcome_of(lambda: re.compile(self.pattern))
        if isinstance(compiled, Exception):
            raise ValueError(f"`pattern`: {compiled}")

    async def grade(self, given: Given, means: Means) -> Grade:
        """1 or 0."""
        flags = int(re.IGNORECASE if self.ignore_case else 0) | int(re.MULTILINE)
        found = await result_of(means, SEARCH, "found", self.pattern, filled(self.input, given), flags, self.whole)
        if found is None or self.reference is None:
            return Grade(float(found is not None))
        return Grade(float((found[-1] or "").strip() == filled(self.reference, given).strip()))


class JsonSchema(Form, frozen=True, kw_only=True, tag="json_schema"):
    """1 where the text is JSON that fits the schema. One with patterns is checked in the sandbox."""

    schema: dict[str, Any]
    input: str = OUTPUT

    def __post_init__(self) -> None:
        check_template("input", self.input)
        if len(json.dumps(self.schema)) > MAX_SCHEMA:
            raise ValueError(f"`schema`: it has more than {MAX_SCHEMA} characters")
        if unknown := schema_check.unknown_keywords(self.schema):
            raise ValueError(f"`{unknown[0]}`: this keyword is not checked here")
        # Shown a value of every kind, a schema whose keywords have wrong values fails here and not in a job.
        values: tuple[Any, ...] = ({}, [], "", 0, None)
        for value in values:
            tried = outcome_of(partial(schema_check.first_fault, self.schema, value))
            if isinstance(tried, Exception):
                raise ValueError(f"`schema`: {tried}")

    async def grade(self, given: Given, means: Means) -> Grade:
        """1 or 0."""
        try:
            value = strict_json(filled(self.input, given))
        except ValueError:
            return Grade(0.0)
        return Grade(float(await schema_fault(self.schema, value, means) is None))


async def schema_fault(schema: dict[str, Any], value: Any, means: Means) -> str | None:
    """Where a value does not fit; None where it fits."""
    # A pattern may take exponential time, and a long value a long one, so these run where time is bounded.
    if '"pattern' in json.dumps(schema) or len(json.dumps(value)) > SHORT:
        fault: str | None = await result_of(means, inspect.getsource(schema_check), "first_fault", schema, value)
        return fault
    # Values of every kind were shown to the schema when it was read, but not to what lies within it.
    found = outcome_of(partial(schema_check.first_fault, schema, value))
    if isinstance(found, Exception):
        raise GraderTrouble("other", f"the schema could not be checked: {found}")
    return found


class Length(Form, frozen=True, kw_only=True, tag="length"):
    """1 for a length from `min` to `max`, falling to 0 over `buffer` more or fewer (as DAPO's overlong penalty does,
    Yu et al., 2025, which is this minus 1). Tokens are those that were sampled, thoughts included."""

    max: Count
    min: Count = 0
    buffer: Count = 0
    unit: Literal["tokens", "words", "characters"] = "tokens"
    input: str = OUTPUT  # what words and characters are counted of

    def __post_init__(self) -> None:
        check_template("input", self.input)
        if self.min > self.max:
            raise ValueError(f"`min`: {self.min} is more than `max`, {self.max}")

    async def grade(self, given: Given, means: Means) -> Grade:
        """From 0 to 1."""
        if self.unit == "tokens":
            length = given.answer.n_tokens
            if not length and given.answer.text:
                raise GraderTrouble("other", "nobody knows how many tokens this text has; use words or characters")
        else:
            text = filled(self.input, given)
            length = len(text) if self.unit == "characters" else len(words_of(text))
        outside = max(length - self.max, self.min - length, 0)
        return Grade(max(0.0, 1 - outside / self.buffer) if self.buffer else float(outside == 0))

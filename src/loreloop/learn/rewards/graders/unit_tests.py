"""A check of ours: the code in an answer, run in the sandbox against tests.

`cases` are compared out here: what is expected never enters the sandbox, so no answer can read or forge it. `tests` run
beside the answer's code, as usual; code that wants to deceive them can.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loreloop.learn.rewards.graders.form_checks import OUTPUT
from loreloop.learn.rewards.graders.grader import Form, Given, Grade, GraderTrouble, Means
from loreloop.learn.rewards.graders.in_sandbox import as_float, ran
from loreloop.learn.rewards.graders.templates import check_template, filled, value_of
from loreloop.learn.rewards.sandbox import Outcome

# A block of any language is matched whole: else the end of a block of text would be read as the beginning of code.
FENCE = re.compile(r"```[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
LANGUAGES = ("python", "py", "python3")
MAX_CASES = 256
DRIVER = """
def _call(_name, _arguments):
    return globals()[_name](*_arguments)
"""
# One function for each test, found by its name as pytest finds it; else the tests are one piece of code.
TESTING = """
def _run(_source, _name):
    _names = globals()
    exec(compile(_source, "tests", "exec"), _names)
    if _name is not None:
        _names[_name]()
    return True
"""


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call of the answer's function, and what it should give."""

    arguments: list[Any]
    expected: Any


class UnitTests(Form, frozen=True, kw_only=True, tag="unit_tests"):
    """The share of tests that the answer's code passes, or, with `credit` all, 1 where it passes every one. `tests` and
    `cases` may be templates that lead into the item."""

    function: str | None = None  # that cases call
    cases: list[Case] | str | None = None
    tests: str | None = None
    input: str = OUTPUT
    credit: Literal["share", "all"] = "share"
    tolerance: Annotated[float, Meta(ge=0)] = 1e-9  # of numbers, relative

    def __post_init__(self) -> None:
        check_template("input", self.input)
        check_template("tests", self.tests or "")
        check_template("cases", self.cases if isinstance(self.cases, str) else "")
        check_template("function", self.function or "")
        if (self.cases is None) == (self.tests is None):
            raise ValueError("`cases`: give these or `tests`, one of the two")
        if self.cases is not None and self.function is None:
            raise ValueError("`function`: cases need the name of the function that they call")

    async def grade(self, given: Given, means: Means) -> Grade:
        """From 0 to 1; `passed` and `tests` among the parts are counts."""
        code = code_of(filled(self.input, given))
        passed = await (self._cases(code, given, means) if self.cases is not None else self._tests(code, given, means))
        share = sum(passed) / len(passed)
        counts = {"passed": float(sum(passed)), "tests": float(len(passed))}
        return Grade(share if self.credit == "share" else float(share == 1), counts)

    async def _cases(self, code: str, given: Given, means: Means) -> list[bool]:
        assert self.function is not None
        cases = value_of(self.cases, given) if isinstance(self.cases, str) else self.cases
        try:
            cases = msgspec.convert(cases, list[Case], from_attributes=True)
        except msgspec.ValidationError as error:
            raise GraderTrouble("invalid_variable", f"cases: {error}") from None
        if not 0 < len(cases) <= MAX_CASES:
            raise GraderTrouble("invalid_variable", f"there are {len(cases)} cases; 1 to {MAX_CASES} are run")
        name = filled(self.function, given)
        calls = [("_call", name, case.arguments) for case in cases]
        outcomes = await _until_too_slow(means, code + DRIVER, calls)
        return [
            outcome is not None and outcome.error is None and alike(outcome.result, case.expected, self.tolerance)
            for outcome, case in zip(outcomes, cases, strict=True)
        ]

    async def _tests(self, code: str, given: Given, means: Means) -> list[bool]:
        assert self.tests is not None
        source = filled(self.tests, given)
        names = re.findall(r"^def (test\w*)\(", source, re.MULTILINE)[:MAX_CASES] or [None]
        outcomes = await _until_too_slow(means, code + TESTING, [("_run", source, name) for name in names])
        return [outcome is not None and outcome.error is None and outcome.result is True for outcome in outcomes]


async def _until_too_slow(means: Means, code: str, calls: Sequence[tuple[Any, ...]]) -> list[Outcome | None]:
    """What came of each call. Once one has taken all its time, those behind it are not run and count as failed: an
    answer with an endless loop costs one limit, and not one for each of its tests."""
    outcomes: list[Outcome | None] = []
    for function, *arguments in calls:
        slow = outcomes and (outcomes[-1] is None or outcomes[-1].limit in ("time", "cpu"))
        outcomes.append(None if slow else await ran(means, code, function, *arguments))
    return outcomes


def code_of(text: str) -> str:
    """The code of an answer: its fenced blocks of Python one after the other, else those that name no language, or all
    of it where there are none."""
    blocks: list[tuple[str, str]] = FENCE.findall(text)
    python = [code for language, code in blocks if language.lower() in LANGUAGES]
    code = python or [code for language, code in blocks if not language]
    return "\n".join(code) if code else text


def alike(value: Any, expected: Any, tolerance: float) -> bool:
    """Equal as JSON, numbers within a relative tolerance; true is not 1."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int | float) and isinstance(expected, int | float):
        # Whole numbers beyond all floats are near to nothing but themselves.
        close = math.isclose(as_float(value), as_float(expected), rel_tol=tolerance, abs_tol=tolerance)
        return value == expected or (close and math.isfinite(as_float(value)))
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(lambda a, b: alike(a, b, tolerance), value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(alike(value[key], expected[key], tolerance) for key in value)
    return bool(value == expected)

"""OpenAI's `python` grader: a function `grade(sample, item)` from outside, which runs in the sandbox."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta

from loreloop.learn.rewards.graders.grader import MISSING, Form, Given, Grade, GraderTrouble, Means
from loreloop.learn.rewards.graders.in_sandbox import as_float, result_of

FUNCTION = "grade"
MAX_SOURCE = 256 << 10  # characters, as OpenAI has it
MAX_PARSED = 32 << 10  # characters of a source that is read before it runs


class PythonCode(Form, frozen=True, kw_only=True, tag="python"):
    """The number that the source's `grade` gives. `image_tag` is read and changes nothing: code runs under this
    server's own Python."""

    source: Annotated[str, Meta(max_length=MAX_SOURCE)]
    image_tag: str | None = None

    def __post_init__(self) -> None:
        # The parser holds up everything else in this process, up to seconds for the longest source; what is wrong in
        # such a one is told when it first runs.
        if len(self.source) > MAX_PARSED:
            return
        try:
            tree = ast.parse(self.source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            place = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            raise ValueError(f"`source`: {error.args[0] if error.args else 'it is nested too deeply'}{place}") from None
        if FUNCTION not in {*_names(tree)}:
            raise ValueError(f"`source`: it defines no function {FUNCTION}(sample, item)")

    async def grade(self, given: Given, means: Means) -> Grade:
        """The function's number. GraderTrouble where it raises, takes too long or gives something else."""
        value = await result_of(means, self.source, FUNCTION, sample_of(given), dict(given.item))
        if not isinstance(value, int | float):  # True and False are numbers, 1 and 0, and what many graders give
            raise GraderTrouble("python_grader_runtime", f"grade gave {repr(value)[:100]}, which is no number")
        reward = as_float(value)
        if not math.isfinite(reward):
            raise GraderTrouble(
                "python_grader_runtime", f"grade gave {str(value)[:100]}, which is no number to learn from"
            )
        return Grade(reward)


def _names(tree: ast.AST) -> Iterator[str]:
    """Whatever a source gives a name to, in whichever way."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.alias(name=name, asname=other):
                yield other or name


def sample_of(given: Given) -> dict[str, Any]:
    """The `sample` that a function gets; where the answer is no JSON, its `output_json` is None."""
    sample = dict(given.sample)
    return sample | {"output_json": None if sample["output_json"] is MISSING else sample["output_json"]}

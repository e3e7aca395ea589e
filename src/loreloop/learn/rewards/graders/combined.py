"""Graders of graders: OpenAI's `multi` with a formula, and `mixture` of ours with weights."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

from loreloop.learn.rewards.graders.comparisons import Exact, StringCheck, TextSimilarity
from loreloop.learn.rewards.graders.form_checks import JsonSchema, Length, Regex
from loreloop.learn.rewards.graders.formula import formula_of
from loreloop.learn.rewards.graders.grader import (
    IDENTIFIER,
    Form,
    Given,
    Grade,
    Grader,
    GraderTrouble,
    Means,
    graded,
)
from loreloop.learn.rewards.graders.judges import Pairwise, Rubric
from loreloop.learn.rewards.graders.models import LabelModel, ScoreModel
from loreloop.learn.rewards.graders.python_code import PythonCode
from loreloop.learn.rewards.graders.tool_call import ToolCall
from loreloop.learn.rewards.graders.unit_tests import UnitTests

OfOpenAI = StringCheck | TextSimilarity | ScoreModel | LabelModel | PythonCode
AskingModel = ScoreModel | LabelModel | Rubric | Pairwise
Single = OfOpenAI | Exact | Regex | JsonSchema | UnitTests | ToolCall | Length | Rubric | Pairwise
Named = Annotated[dict[str, Single], Meta(min_length=1, max_length=32)]


class Multi(Form, frozen=True, kw_only=True, tag="multi"):
    """The value of a formula over the rewards of several graders, by their names."""

    graders: Named
    calculate_output: str

    def __post_init__(self) -> None:
        for name in self.graders:
            if not IDENTIFIER.fullmatch(name):
                raise ValueError(
                    f"`graders`: {name[:60]!r} is no name that a formula can hold; use letters, digits and _"
                )
        try:
            formula = formula_of(self.calculate_output)
        except ValueError as error:
            raise ValueError(f"`calculate_output`: {error}") from None
        if unknown := sorted(formula.names - self.graders.keys()):
            raise ValueError(f"`calculate_output`: {unknown[0]!r} is none of the graders, {', '.join(self.graders)}")

    async def grade(self, given: Given, means: Means) -> Grade:
        """The formula's value, with the rewards as parts. Trouble of one grader is that of all."""
        together = await all_graded(self.graders, given, means)
        if together.trouble is not None:
            return together
        try:
            # Read again at each answer, which takes microseconds; a struct of JSON fields has no place to keep it.
            value = formula_of(self.calculate_output).evaluate(together.parts)
        except (ArithmeticError, ValueError) as error:
            raise GraderTrouble("other", f"calculate_output has no value for {dict(together.parts)}: {error}") from None
        return Grade(value, together.parts, tokens=together.tokens)


class Mixture(Form, frozen=True, kw_only=True, tag="mixture"):
    """The weighted mean of several graders' rewards. A weight below 0 counts against; the sizes of all add up to what
    is divided by."""

    graders: Named
    weights: dict[str, Annotated[float, Meta(ge=-1e6, le=1e6)]]

    def __post_init__(self) -> None:
        if self.weights.keys() != self.graders.keys():
            raise ValueError(f"`weights`: these must be the graders' names, {', '.join(self.graders)}")
        if not sum(map(abs, self.weights.values())):
            raise ValueError("`weights`: at least one must not be 0")

    async def grade(self, given: Given, means: Means) -> Grade:
        """The mean, with the rewards as parts. Trouble of one grader is that of all."""
        together = await all_graded(self.graders, given, means)
        if together.trouble is not None:
            return together
        total = sum(map(abs, self.weights.values()))
        value = sum(weight * together.parts[name] for name, weight in self.weights.items()) / total
        return Grade(value, together.parts, tokens=together.tokens)


AnyGrader = Single | Multi | Mixture


async def all_graded(graders: dict[str, Single], given: Given, means: Means) -> Grade:
    """The rewards of all graders as parts, and the first trouble with its grader's name. All run at once."""
    named: Mapping[str, Grader] = graders
    # `graded` turns trouble into a grade, so that no part's trouble leaves the others running with nobody waiting.
    grades = await asyncio.gather(*(graded(grader, given, means) for grader in named.values()))
    tokens: Counter[str] = Counter()
    for grade in grades:
        tokens.update(grade.tokens)
    parts = {name: grade.value for name, grade in zip(named, grades, strict=True)}
    trouble = next((grade.trouble for grade in grades if grade.trouble is not None), None)
    return Grade(0.0, parts, trouble, dict(tokens))

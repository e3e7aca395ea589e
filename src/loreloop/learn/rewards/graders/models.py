"""OpenAI's graders that ask a served model: `score_model` for a number, `label_model` for one of some labels."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from loreloop.learn.rewards.graders.grader import Form, Given, Grade, GraderTrouble, Means
from loreloop.learn.rewards.graders.model_questions import Message, SamplingParams, asked_for_json, question_of
from loreloop.text.conversation import Turn

Messages = Annotated[tuple[Message, ...], Meta(min_length=1, max_length=64)]
Labels = Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]


class ScoreModel(Form, frozen=True, kw_only=True, tag="score_model"):
    """A number within `range` that a model gives. What form its answer has, it is told in a last system text."""

    input: Messages
    model: str
    range: Annotated[tuple[float, ...], Meta(min_length=2, max_length=2)] = (0.0, 1.0)
    sampling_params: SamplingParams | None = None

    def __post_init__(self) -> None:
        if not self.range[0] < self.range[1]:
            raise ValueError(f"`range`: its first number must be the smaller one, and it is {list(self.range)}")

    async def grade(self, given: Given, means: Means) -> Grade:
        """The model's number. GraderTrouble where it gives none, or one outside of the range."""
        low, high = self.range
        schema = _object("result", {"type": "number", "minimum": low, "maximum": high})
        # The grammar holds the form in any case; a model that is told of it does not have to be bent into it.
        rule = f'Answer with JSON of the form {{"result": NUMBER}}; the number is from {low:g} to {high:g}.'
        turns = with_rule(tuple(message.turn(given) for message in self.input), rule)
        question = question_of(self.model, turns, schema, self.sampling_params or SamplingParams())
        value, said = await asked_for_json(means, question)
        number = value.get("result")
        # Not every server's grammar holds a number to a range.
        if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
            raise GraderTrouble("model_grader_parse", f"the model {self.model!r} gave the result {str(number)[:100]}")
        return Grade(float(number), tokens={self.model: said.tokens})


class LabelModel(Form, frozen=True, kw_only=True, tag="label_model"):
    """1 where the label that a model chooses is a passing one."""

    input: Messages
    model: str
    labels: Labels
    passing_labels: Labels
    sampling_params: SamplingParams | None = None  # not of OpenAI

    def __post_init__(self) -> None:
        if unknown := [label for label in self.passing_labels if label not in self.labels]:
            raise ValueError(f"`passing_labels`: {unknown[0]!r} is none of the labels")

    async def grade(self, given: Given, means: Means) -> Grade:
        """1 or 0. GraderTrouble where the model chooses no label."""
        turns = tuple(message.turn(given) for message in self.input)
        label, tokens = await chosen(means, self.model, turns, self.labels, self.sampling_params or SamplingParams())
        return Grade(float(label in self.passing_labels), tokens={self.model: tokens})


async def chosen(
    means: Means, model: str, turns: tuple[Turn, ...], labels: tuple[str, ...], params: SamplingParams
) -> tuple[str, int]:
    """The label that a model chooses, and the tokens that this took."""
    schema = _object("label", {"type": "string", "enum": list(labels)})
    named = ", ".join(f'"{label}"' for label in labels)
    rule = f'Answer with JSON of the form {{"label": LABEL}}; the label is one of {named}.'
    value, said = await asked_for_json(means, question_of(model, with_rule(turns, rule), schema, params))
    label = value.get("label")
    if not isinstance(label, str) or label not in labels:
        raise GraderTrouble("model_grader_parse", f"the model {model!r} chose the label {str(label)[:100]!r}")
    return label, said.tokens


def with_rule(turns: tuple[Turn, ...], rule: str) -> tuple[Turn, ...]:
    """The rule at the end of the system's turn, which comes first; many templates take one such turn only."""
    if turns and turns[0].role == "system" and not turns[0].parts:
        return (Turn("system", f"{turns[0].content}\n\n{rule}"), *turns[1:])
    return (Turn("system", rule), *turns)


def _object(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}

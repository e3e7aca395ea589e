"""The messages of graders that ask a model: OpenAI's forms of content as turns, with their templates filled in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loreloop.learn.rewards.graders.grader import Given, GraderTrouble, Means, Question, Said
from loreloop.learn.rewards.graders.templates import check_template, filled
from loreloop.text.conversation import Picture, Turn, turn_of_parts

MAX_ANSWER_TOKENS = 1024  # of a grading model's answer, where the grader names no bound


class TextContent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="input_text"):
    """A text."""

    text: str


class SaidContent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    """A text that a model has said."""

    text: str


class ImageContent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="input_image"):
    """An image; its address may be a template. `detail` is read and changes nothing."""

    image_url: str
    detail: str | None = None


Content = TextContent | SaidContent | ImageContent


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a grader's `input`."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Content | tuple[str | Content, ...]
    type: Literal["message"] = "message"

    def __post_init__(self) -> None:
        for part in self.parts():
            check_template("content", part if isinstance(part, str) else _template(part))

    def parts(self) -> tuple[str | Content, ...]:
        """The content as a list, whatever form it came in."""
        return self.content if isinstance(self.content, tuple) else (self.content,)

    def turn(self, given: Given) -> Turn:
        """The message for one answer, as a turn of a conversation."""
        parts = [_part(part, given) for part in self.parts()]
        return turn_of_parts("system" if self.role == "developer" else self.role, parts)


def _template(part: Content) -> str:
    return part.image_url if isinstance(part, ImageContent) else part.text


def _part(part: str | Content, given: Given) -> str | Picture:
    if isinstance(part, ImageContent):
        return Picture(filled(part.image_url, given))
    return filled(part if isinstance(part, str) else part.text, given)


class SamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a grading model is sampled, in OpenAI's names."""

    max_completions_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None


async def asked(means: Means, question: Question) -> Said:
    """A served model's answer; GraderTrouble where no model can be asked here."""
    if means.chat is None:
        raise GraderTrouble("model_grader_server", "no model can be asked here")
    return await means.chat(question)


async def asked_for_json(means: Means, question: Question) -> tuple[dict[str, Any], Said]:
    """An answer as the JSON object that its schema asks for; GraderTrouble where the model did not write one."""
    said = await asked(means, question)
    try:
        value = msgspec.json.decode(said.text.strip())
    except (msgspec.DecodeError, UnicodeEncodeError):
        value = None
    if not isinstance(value, dict):
        raise GraderTrouble("model_grader_parse", f"the model {question.model!r} answered {said.text[:200]!r}")
    return value, said


def question_of(
    model: str,
    turns: tuple[Turn, ...],
    schema: dict[str, Any],
    params: SamplingParams = SamplingParams(),  # noqa: B008
) -> Question:
    """A question whose answer is to fit `schema`. Without a temperature the likeliest answer is taken: a grader should
    say the same of the same."""
    return Question(
        model=model,
        turns=turns,
        schema=schema,
        max_tokens=params.max_completions_tokens or MAX_ANSWER_TOKENS,
        # Rewards that change from one asking to the next are noise which the policy cannot learn away.
        temperature=0.0 if params.temperature is None else params.temperature,
        top_p=params.top_p,
        seed=params.seed,
        effort=params.reasoning_effort,
    )

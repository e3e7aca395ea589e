"""Judges of ours that ask a served model: by a rubric, point for point, and by comparison with another answer.

A comparison is asked twice with the answers' places swapped, since models favour one place; where the two disagree, it
is a draw. A rubric's questions are yes or no, which small models answer more steadily than they give numbers.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from loreloop.learn.rewards.graders.form_checks import OUTPUT
from loreloop.learn.rewards.graders.grader import Form, Given, Grade, Means
from loreloop.learn.rewards.graders.model_questions import SamplingParams
from loreloop.learn.rewards.graders.models import chosen
from loreloop.learn.rewards.graders.templates import check_template, filled
from loreloop.text.conversation import Conversation, Turn

Positive = Annotated[float, Meta(gt=0, le=1e6)]
Text = Annotated[str, Meta(min_length=1, max_length=20_000)]
YES, NO = "yes", "no"
RUBRIC_RULE = "You judge an answer by one criterion. Say yes only if the answer clearly meets it."
PAIR_RULE = (
    "You compare two answers to one task, called A and B, by the criteria below. Which of them comes first, how long "
    "they are and how sure of themselves they sound must not count."
)


class Criterion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question of a rubric. With a `weight` below 0 it describes what an answer should not do."""

    text: Text
    weight: Annotated[float, Meta(ge=-1e6, le=1e6)] = 1.0

    def __post_init__(self) -> None:
        check_template("text", self.text)
        if not self.weight:
            raise ValueError("`weight`: 0 makes the criterion count for nothing")


Criteria = Annotated[tuple[Criterion, ...], Meta(min_length=1, max_length=32)]


class Rubric(Form, frozen=True, kw_only=True, tag="rubric"):
    """The weights of the criteria that a model finds met, shifted and scaled so that the best answer has 1 and the
    worst 0. `task` is what was asked; by default the conversation that was answered."""

    model: str
    criteria: Criteria
    task: str | None = None
    input: str = OUTPUT
    sampling_params: SamplingParams | None = None

    def __post_init__(self) -> None:
        check_template("input", self.input)
        check_template("task", self.task or "")
        if all(criterion.weight < 0 for criterion in self.criteria):
            raise ValueError("`criteria`: at least one needs a weight above 0")

    async def grade(self, given: Given, means: Means) -> Grade:
        """From 0 to 1; the parts say for each criterion, by its number, whether it is met."""
        parts, tokens, sampling = dict[str, float](), 0, self.sampling_params or SamplingParams()
        about = f"Task:\n{task_of(self.task, given)}\n\nAnswer:\n{filled(self.input, given)}"
        for number, criterion in enumerate(self.criteria):
            asking = f"{about}\n\nCriterion: {filled(criterion.text, given)}\nDoes the answer meet it?"
            turns = (Turn("system", RUBRIC_RULE), Turn("user", asking))
            label, n_tokens = await chosen(means, self.model, turns, (YES, NO), sampling)
            parts[f"criterion_{number}"] = float(label == YES)
            tokens += n_tokens
        # Shifted by the worst that is possible and not by the worst that was seen, so that a reward means the same for
        # every answer.
        weights = [criterion.weight for criterion in self.criteria]
        worst = sum(weight for weight in weights if weight < 0)
        best = sum(weight for weight in weights if weight > 0)
        met = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        return Grade((met - worst) / (best - worst), parts, tokens={self.model: tokens})


class Pairwise(Form, frozen=True, kw_only=True, tag="pairwise"):
    """1 where a model finds the answer better than the reference in both orders, 0 where it finds it worse in both,
    else 0.5."""

    model: str
    reference: str
    criteria: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=32)]
    task: str | None = None
    input: str = OUTPUT
    sampling_params: SamplingParams | None = None

    def __post_init__(self) -> None:
        check_template("input", self.input)
        check_template("reference", self.reference)
        check_template("task", self.task or "")
        for criterion in self.criteria:
            check_template("criteria", criterion)

    async def grade(self, given: Given, means: Means) -> Grade:
        """0, 0.5 or 1; the parts are the wins in each place."""
        pair = (filled(self.input, given), filled(self.reference, given))
        with_items = msgspec.structs.replace(self, criteria=tuple(filled(one, given) for one in self.criteria))
        return await with_items.compared(task_of(self.task, given), pair, means)

    async def compared(self, task: str, pair: tuple[str, str], means: Means) -> Grade:
        """How the first of two answers does against the second one; a group is compared two by two."""
        # Asked in both orders: a judge that favours a place then contradicts itself, and the result is a draw.
        first, n_first = await self._first_wins(task, pair[0], pair[1], means)
        second, n_second = await self._first_wins(task, pair[1], pair[0], means)
        wins = {"as_a": float(first), "as_b": float(not second)}
        return Grade(sum(wins.values()) / 2, wins, tokens={self.model: n_first + n_second})

    async def _first_wins(self, task: str, a: str, b: str, means: Means) -> tuple[bool, int]:
        criteria = "\n".join(f"- {criterion}" for criterion in self.criteria)
        asking = (
            f"Task:\n{task}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\nCriteria:\n{criteria}\n\nWhich answer is better?"
        )
        turns = (Turn("system", PAIR_RULE), Turn("user", asking))
        label, tokens = await chosen(means, self.model, turns, ("A", "B"), self.sampling_params or SamplingParams())
        return label == "A", tokens


def task_of(template: str | None, given: Given) -> str:
    """What was asked, as text: the template's, or the conversation that was answered."""
    if template is not None:
        return filled(template, given)
    return written(given.prompt) if given.prompt else "(not told)"


def written(conversation: Conversation) -> str:
    """A conversation as text; a single turn of the user without its role."""
    turns = conversation.turns
    if len(turns) == 1:
        return turns[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)

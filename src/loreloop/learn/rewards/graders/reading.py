"""A grader's JSON to a grader that is known to be whole, and a grader to a reward."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from loreloop.learn.examples import Task
from loreloop.learn.rewards.graders.combined import AnyGrader, AskingModel, Mixture, Multi
from loreloop.learn.rewards.graders.grader import Means, given_of, graded
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.protocol.errors import BadRequest

OPENAI = ("string_check", "text_similarity", "score_model", "label_model", "python", "multi")
OURS = ("exact", "regex", "json_schema", "unit_tests", "tool_call", "length", "rubric", "pairwise", "mixture")
COMBINED = ("multi", "mixture")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def grader_of(plain: object, where: str = "grader") -> AnyGrader:
    """The grader that JSON values describe. BadRequest names the field that is wrong, by its path from `where`."""
    if not isinstance(plain, Mapping):
        raise BadRequest(f"The grader is wrong: `{where}` must be an object with a type.")
    kind = plain.get("type")
    if kind not in (*OPENAI, *OURS):
        raise BadRequest(
            f"The grader is wrong: `{where}.type` is {str(kind)[:60]!r}; there are {', '.join((*OPENAI, *OURS))}."
        )
    try:
        return msgspec.convert(_with_names(plain, where), AnyGrader)
    except msgspec.ValidationError as error:
        raise BadRequest(_in_words(str(error), where)) from None


def as_json(grader: AnyGrader) -> dict[str, Any]:
    """The grader's JSON again, with its defaults; fields that are null are left out."""
    return {name: value for name, value in msgspec.to_builtins(grader).items() if value is not None}


def models_of(grader: AnyGrader) -> tuple[str, ...]:
    """The names of the served models that a grader asks."""
    parts = grader.graders.values() if isinstance(grader, Multi | Mixture) else [grader]
    return tuple(dict.fromkeys(part.model for part in parts if isinstance(part, AskingModel)))


class GraderReward:
    """A grader as a reward: several answers may be graded at once."""

    def __init__(self, grader: AnyGrader, means: Means) -> None:
        self.grader, self.means = grader, means

    async def __call__(self, answer: Answer, task: Task) -> Score:
        """The grader's score of an answer; its trouble is told as `kind: details`."""
        grade = await graded(self.grader, given_of(answer, task.item, task.prompt), self.means)
        told = f"{grade.trouble.kind}: {grade.trouble.details}" if grade.trouble else None
        return Score(grade.value if told is None else 0.0, grade.parts, told)


def _with_names(plain: Mapping[str, Any], where: str) -> dict[str, Any]:
    """With the graders of a combined one by their names, in whichever of OpenAI's forms they came: an object by name,
    a list, or a single one."""
    if plain.get("type") not in COMBINED or not isinstance(plain.get("graders"), Mapping | list):
        return dict(plain)
    graders = plain["graders"]
    if isinstance(graders, Mapping) and isinstance(graders.get("type"), str):
        graders = [graders]
    if isinstance(graders, list):
        named: dict[str, Any] = {}
        for number, grader in enumerate(graders):
            name = grader.get("name") if isinstance(grader, Mapping) else None
            if not isinstance(name, str) or name in named:
                raise BadRequest(
                    f"The grader is wrong: `{where}.graders[{number}].name` must be a text, unlike the others'."
                )
            named[name] = grader
        graders = named
    # In an object the key is the name; OpenAI's examples write it a second time, and it may be left out here.
    # The key goes first, so that a name which is written inside is kept.
    named = {key: {"name": key, **one} if isinstance(one, Mapping) else one for key, one in graders.items()}
    return {**plain, "graders": named}


def _in_words(error: str, where: str) -> str:
    what, _, place = error.rpartition(" - at `$")
    what, path = (what, place.rstrip("`")) if what else (error, "")
    if unknown := _UNKNOWN.fullmatch(what):
        return f"The grader is wrong: `{where}{path}` has no field `{unknown[1][:100]}`; leave it out."
    what = what.replace("Object missing required field", "this field is missing:")
    return f"The grader is wrong: `{where}{path}`: {what[:1].lower()}{what[1:500]}."

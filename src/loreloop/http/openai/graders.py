"""OpenAI's routes for graders: one is checked, or run on one answer. Jobs run the same graders (`learn/rewards`)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import answer, read_as_sent
from loreloop.http.generation.judging import means_of
from loreloop.http.generation.requests import find_model, while_there
from loreloop.http.services import TRAIN, caller
from loreloop.learn.rewards.graders.combined import AnyGrader
from loreloop.learn.rewards.graders.grader import Grade, Trouble, given_of, graded
from loreloop.learn.rewards.graders.reading import as_json, grader_of, models_of
from loreloop.learn.rewards.reward import Answer
from loreloop.protocol.openai_rest import GraderCheck, GraderRun

ERRORS = (  # every flag of OpenAI's answer, in its order
    *("formula_parse_error", "sample_parse_error", "truncated_observation_error", "unresponsive_reward_error"),
    *("invalid_variable_error", "other_error", "python_grader_server_error", "python_grader_runtime_error"),
    *("model_grader_server_error", "model_grader_refusal_error", "model_grader_parse_error"),
)
DETAILS = (
    "python_grader_runtime_error_details",
    "model_grader_server_error_details",
    "python_grader_server_error_type",
)


async def validate_grader(request: Request) -> Response:
    """The grader as it is understood, with its defaults; BadRequest names the field that is wrong, NotFound a model
    that its key may not ask or that there is not."""
    caller(request, TRAIN)
    body = await read_as_sent(request, GraderCheck)
    return answer({"grader": as_json(await _checked(request, body.grader))})


async def run_grader(request: Request) -> Response:
    """The reward of one answer. What goes wrong within the grader is told in the metadata, and the reward is then 0."""
    caller(request, TRAIN)
    body = await read_as_sent(request, GraderRun)
    grader = await _checked(request, body.grader)
    given = given_of(Answer(body.model_sample), body.item or {})
    started = time.perf_counter()
    grade = await while_there(request, graded(grader, given, means_of(request)))
    return answer(told(grader, grade, time.perf_counter() - started))


async def _checked(request: Request, plain: dict[str, Any]) -> AnyGrader:
    # Reading a long source takes some tenths of a second, and others are served meanwhile.
    grader = await asyncio.to_thread(grader_of, plain)
    for name in models_of(grader):
        await find_model(request, name)  # a name that cannot be asked is told now, and not once for every answer
    return grader


def told(grader: AnyGrader, grade: Grade, seconds: float) -> dict[str, Any]:
    """A grade in the fields of OpenAI's answer."""
    value = 0.0 if grade.trouble else grade.value
    asked = models_of(grader)
    return {
        "reward": value,
        "sub_rewards": dict(grade.parts),
        "model_grader_token_usage_per_model": dict(grade.tokens),
        "metadata": {
            "name": grader.name,
            "type": as_json(grader)["type"],
            "errors": errors_of(grade.trouble),
            "execution_time": seconds,
            "scores": dict(grade.parts) or {grader.name: value},
            "token_usage": sum(grade.tokens.values()) if asked else None,
            "sampled_model_name": asked[0] if len(asked) == 1 else None,
        },
    }


def errors_of(trouble: Trouble | None) -> dict[str, Any]:
    """OpenAI's flags, with the details where it has a field for them; `other_error_details` is ours."""
    flags: dict[str, Any] = dict.fromkeys(ERRORS, False) | dict.fromkeys(DETAILS)
    if trouble is None:
        return flags
    name = f"{trouble.kind}_error"
    own = {"python_grader_server": "python_grader_server_error_type"}.get(trouble.kind, f"{name}_details")
    return flags | {name: True, own: trouble.details}


ROUTES = [
    Route("/fine_tuning/alpha/graders/run", run_grader, methods=["POST"]),
    Route("/fine_tuning/alpha/graders/validate", validate_grader, methods=["POST"]),
]

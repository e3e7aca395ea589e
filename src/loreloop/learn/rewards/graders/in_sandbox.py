"""How graders run code: one call in the sandbox, with its failure told as trouble."""

from __future__ import annotations

import math
from typing import Any

from loreloop.learn.rewards.graders.grader import GraderTrouble, Means
from loreloop.learn.rewards.sandbox import Call, Outcome
from loreloop.protocol.errors import LoreloopError


async def ran(means: Means, code: str, function: str, *arguments: Any) -> Outcome:
    """What came of a call. GraderTrouble where no code is run here, or no process could be started."""
    if means.sandbox is None:
        raise GraderTrouble("python_grader_server", "no code is run here")
    try:
        return await means.sandbox.run(code, call=Call(function, arguments), limits=means.limits, asker=means.asker)
    except LoreloopError as error:
        raise GraderTrouble("python_grader_server", error.message) from error
    except RecursionError:
        raise GraderTrouble("invalid_variable", "the task's item is nested too deeply for code") from None


def as_float(value: int | float) -> float:
    """A number that code gave; infinite where it is a whole one beyond all that a float can be."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


async def result_of(means: Means, code: str, function: str, *arguments: Any) -> Any:
    """What a call gives; GraderTrouble where it fails or passes a limit."""
    outcome = await ran(means, code, function, *arguments)
    # OpenAI's flags tell slow code from wrong code, and only this bound is about being slow.
    if outcome.limit == "time":
        raise GraderTrouble("unresponsive_reward", f"the code took more than {means.limits.seconds:g} s")
    if outcome.error is not None:
        raise GraderTrouble("python_grader_runtime", outcome.error)
    return outcome.result

"""What is played by a run's settings: the environment of an episode, the reward, and tasks that an environment brings.

`rewarded_methods.py` makes the learners around it. Knows no learner.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loreloop.learn.environments.calculator import Calculator
from loreloop.learn.environments.environment import Environment, OneAnswer
from loreloop.learn.environments.given import python_tool
from loreloop.learn.environments.named import ITEMS, PUZZLES, Named, Wanted, named
from loreloop.learn.environments.tools import Offered, Rewarded
from loreloop.learn.examples import Task
from loreloop.learn.files import tasks, tasks_with
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.rewards.graders.reading import GraderReward, grader_of
from loreloop.learn.rewards.reward import Answer, Reward, Score
from loreloop.learn.settings import DistillSettings, RewardSettings
from loreloop.protocol.errors import BadRequest

SERVER_TOOLS = "mcp:"  # before the name of a registered tool server


@dataclass(frozen=True)
class Tools:
    """What episodes may use of the machine: means of graders, of which the Python tool takes the sandbox, and the tools
    of a registered server."""

    means: Means
    of_server: Sequence[Offered] = ()


def own_tasks(settings: RewardSettings, seed: int) -> tuple[list[Task], list[Task]]:
    """The tasks that the settings' environment brings, those to learn from and those to look at. BadRequest where the
    settings name none."""
    if settings.environment is None:
        raise BadRequest("There is nothing to learn from; name a file with --data, or an --environment with tasks.")
    made = _named(settings, seed)
    return list(made.tasks), list(made.held_out)


def check_file(settings: RewardSettings) -> None:
    """BadRequest where the settings' environment cannot take tasks out of a file."""
    if settings.environment is not None and settings.environment.startswith(PUZZLES):
        raise BadRequest("Only the package that makes puzzles knows their answers; leave --data and --eval out.")


def reader_of(settings: RewardSettings) -> Callable[[Iterable[bytes | str]], Iterator[Task]]:
    """What reads tasks out of a file, with the fields that the settings' environment needs. It raises BadLine;
    BadRequest here where the environment cannot take tasks out of a file."""
    check_file(settings)
    item = ITEMS.get(settings.environment or "")
    return tasks if item is None else partial(tasks_with, item)


def environments_of(settings: RewardSettings, reward: Reward, tools: Tools, seed: int = 0) -> Callable[[], Environment]:
    """What makes the environment of an episode. BadRequest where the settings ask for what there is not."""
    if settings.environment is not None:
        if settings.tools != "none":
            raise BadRequest("An environment has the tools that it has; leave --tools out, or --environment.")
        return _named(settings, seed).make
    if settings.tools == "none":
        return lambda: OneAnswer(reward)
    if settings.tools == "calculator":
        return lambda: Calculator(reward)
    if settings.tools == "python":
        sandbox = tools.means.sandbox
        if sandbox is None:
            raise BadRequest("There is no sandbox here for the Python tool; leave --tools python out.")
        return lambda: Rewarded([python_tool(sandbox.run)], reward)
    if settings.tools.startswith(SERVER_TOOLS) and tools.of_server:
        return lambda: Rewarded(tools.of_server, reward)
    raise BadRequest(
        f"There are no tools {settings.tools!r} here; --tools is none, calculator, python or mcp:NAME of a server that "
        "`loreloop tools add` has registered."
    )


def reward_of(settings: RewardSettings, means: Means) -> Reward:
    """The settings' grader as a reward. BadRequest where there is none and the way to learn needs one."""
    if settings.environment is not None:
        if settings.grader is not None:
            raise BadRequest("An environment rewards answers by itself; leave --grader out, or --environment.")
        return _nothing
    if settings.grader is None:
        if isinstance(settings, DistillSettings) and not settings.reward_weight:
            return _nothing
        raise BadRequest("Nothing says how good an answer is; name a grader with --grader.")
    return GraderReward(grader_of(_json(settings.grader)), means)


def _named(settings: RewardSettings, seed: int) -> Named:
    assert settings.environment is not None
    wanted = Wanted(
        name=settings.environment,
        n=settings.tasks,
        n_held_out=settings.eval_tasks,
        seed=seed,
        options=settings.environment_options,
    )
    return named(wanted)


async def _nothing(answer: Answer, task: Task) -> Score:
    return Score(0.0)


def _json(text: str) -> object:
    """A grader's JSON, from the text itself or the file that it names."""
    try:
        return json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"The grader {text} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise BadRequest(f"The grader is not JSON: {error}.") from None

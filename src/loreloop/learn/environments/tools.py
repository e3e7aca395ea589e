"""Environments with tools: methods that a model may call, and a reward for the outcome, the form and the economy.

A tool is a method with `@tool`: its name, docstring and annotations are what the model is told. Knows no tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from loreloop.learn.environments.environment import Environment, Step
from loreloop.learn.examples import Task
from loreloop.learn.rewards.reward import Answer, Reward, Score
from loreloop.text.conversation import Conversation, MadeCall, Turn
from loreloop.text.tools.json_scan import strict_json
from loreloop.text.tools.tool_calls import Tool

Work = Callable[[Mapping[str, Any]], Awaitable[str]]
Method = TypeVar("Method", bound=Callable[..., Awaitable[object]])
TYPES: Mapping[type, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}


class ToolFailure(Exception):
    """Raised by a tool that cannot do what was asked; the model is told its message and may go on."""


class ToolTimeout(ToolFailure):
    """Of a tool that did not answer in time, which is counted by itself."""


@dataclass(frozen=True)
class Offered:
    """A tool as the model is told of it, and what it does: from its arguments to the text that comes back."""

    tool: Tool
    work: Work


@dataclass(frozen=True)
class Costs:
    """What calls cost, beside the outcome: `call` for each one beyond `free`, `malformed` for each that names no tool
    or whose arguments do not fit, and `unfinished` for an episode that ends without an answer of words."""

    call: float = 0.0
    free: int = 0
    malformed: float = 0.1
    unfinished: float = 0.0


def tool(method: Method) -> Method:
    """Marks a method of an environment as a tool. It is told by its docstring, and its parameters by their types."""
    method.is_tool = True  # type: ignore[attr-defined]
    return method


class ToolEnvironment(Environment):
    """Ends with the first answer that calls nothing, which `outcome` then scores, or after `most_calls` calls."""

    costs = Costs()
    most_calls = 16

    def __init__(self) -> None:
        self.task = Task(Conversation(()))
        self.n_calls = 0

    def offers(self) -> Sequence[Offered]:
        """The tools of this episode: the methods that are marked, in the order of their names."""
        marked = inspect.getmembers(self, lambda member: getattr(member, "is_tool", False))
        return [offered(method) for _, method in marked]

    async def outcome(self, answer: Answer) -> Score:
        """What the episode was worth; asked once, at its end."""
        raise NotImplementedError("a tool environment says what its outcome is worth")

    async def reset(self, task: Task) -> Conversation:
        """The task's prompt, with the tools."""
        self.task, self.n_calls = task, 0
        return replace(task.prompt, tools=(*task.prompt.tools, *(each.tool for each in self.offers())))

    async def step(self, answer: Answer) -> Step:
        """Carries out an answer's calls, or scores the answer that has none."""
        results = [await self._called(call) for call in answer.calls]
        self.n_calls += len(results)
        form = -self.costs.malformed * sum(result.malformed for result in results)
        beyond = max(0, self.n_calls - max(self.costs.free, self.n_calls - len(results)))
        economy = -self.costs.call * beyond
        counts = {
            "failed_calls": float(sum(result.failed for result in results)),
            "timed_out_calls": float(sum(result.timed_out for result in results)),
        }
        if results and self.n_calls < self.most_calls:
            turns = tuple(result.turn for result in results)
            return Step(turns, form + economy, {"form": form, "economy": economy, **counts}, done=False)
        end = await self._end(answer, form, economy)
        return replace(end, parts={**end.parts, **counts})

    async def cut_off(self, answer: Answer) -> Step:
        """The outcome as it stands: otherwise an episode that calls tools until nobody asks it any more would earn
        more than one that ends with a wrong answer."""
        return await self._end(answer, 0.0, 0.0)

    async def _end(self, answer: Answer, form: float, economy: float) -> Step:
        score = await self.outcome(answer)
        if answer.calls:
            form -= self.costs.unfinished
        parts = {**score.parts, "outcome": score.value, "form": form, "economy": economy}
        return Step(reward=score.value + form + economy, parts=parts, trouble=score.trouble)

    async def _called(self, call: MadeCall) -> Result:
        known = {each.tool.name: each.work for each in self.offers()}
        if call.name not in known:
            return _result(call, f"Error: there is no tool {call.name}; there are {', '.join(known)}.", malformed=True)
        try:
            arguments = strict_json(call.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            return _result(call, "Error: the arguments are not a JSON object.", malformed=True)
        try:
            return _result(call, await known[call.name](arguments))
        except WrongArguments as error:
            return _result(call, f"Error: {error}", malformed=True)
        except ToolFailure as error:
            return replace(_result(call, f"Error: {error}"), failed=True, timed_out=isinstance(error, ToolTimeout))


class Rewarded(ToolEnvironment):
    """Tools that are passed in, such as those of an MCP server, and a reward that is."""

    def __init__(self, tools: Sequence[Offered], reward: Reward, costs: Costs | None = None) -> None:
        super().__init__()
        self.given, self.reward, self.costs = tools, reward, costs or Costs()

    def offers(self) -> Sequence[Offered]:
        """Those that were passed in."""
        return self.given

    async def outcome(self, answer: Answer) -> Score:
        """The reward of the last answer."""
        return await self.reward(answer, self.task)


@dataclass(frozen=True)
class Result:
    """What came of a call. `malformed`: it could not even be tried; `failed`: the tool could not do it, of which
    `timed_out` are those that it did not answer in time."""

    turn: Turn
    malformed: bool = False
    failed: bool = False
    timed_out: bool = False


def _result(call: MadeCall, text: str, *, malformed: bool = False) -> Result:
    return Result(Turn("tool", text, call_id=call.call_id, name=call.name), malformed)


class WrongArguments(ToolFailure):
    """Arguments that a tool does not take."""


def offered(method: Callable[..., Awaitable[object]]) -> Offered:
    """A method as a tool. Parameters without a default are required."""
    hints = get_type_hints(method)
    parameters = inspect.signature(method).parameters
    properties = {name: {"type": _kind(hints.get(name, str))} for name in parameters}
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    schema = {"type": "object", "properties": properties, "required": required}

    async def work(arguments: Mapping[str, Any]) -> str:
        _check(arguments, properties, required)
        return str(await method(**arguments))

    return Offered(Tool(method.__name__, inspect.getdoc(method) or "", schema), work)


def _kind(annotation: object) -> str:
    if get_origin(annotation) in (Union, UnionType):
        # `int | None` is an int that may be left out.
        inner = [each for each in get_args(annotation) if each is not NoneType]
        annotation = inner[0] if len(inner) == 1 else str
    origin = get_origin(annotation) or annotation
    return TYPES.get(origin, "string") if isinstance(origin, type) else "string"


def _check(arguments: Mapping[str, Any], properties: Mapping[str, Mapping[str, str]], required: Sequence[str]) -> None:
    """WrongArguments that names what is missing, unknown, or of another type."""
    for name in required:
        if name not in arguments:
            raise WrongArguments(f"the argument {name} is missing.")
    for name, value in arguments.items():
        if name not in properties:
            raise WrongArguments(f"there is no argument {name}.")
        wanted = properties[name]["type"]
        # JSON has one kind of number, and Python's True is an int.
        kinds = {kind for kind, word in TYPES.items() if word == wanted} | ({int} if wanted == "number" else set())
        if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and wanted != "boolean"):
            raise WrongArguments(f"the argument {name} is to be of the type {wanted}.")

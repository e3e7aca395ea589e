"""Tools that lie elsewhere, as environments take them: a sandbox for Python, and the tools of an MCP server.

Both are passed in as callables, so that this file knows neither processes nor connections.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from loreloop.learn.environments.tools import Offered, ToolFailure, ToolTimeout, WrongArguments
from loreloop.text.tools.tool_calls import Tool

MOST_OUTPUT = 4000  # characters of what a program printed that the model is shown
PYTHON = Tool(
    "python",
    "Runs a Python program and gives what it prints. Nothing is kept between two programs.",
    {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
)


class Outcome(Protocol):
    """What became of a program."""

    @property
    def stdout(self) -> str:
        """What it printed, errors included."""
        ...

    @property
    def error(self) -> str | None:
        """Why it ended before its time; None where it went well."""
        ...


RunCode = Callable[[str], Awaitable[Outcome]]
CallTool = Callable[[str, Mapping[str, Any]], Awaitable[str]]


def python_tool(run: RunCode) -> Offered:
    """A Python tool; `run` is a sandbox's, which bounds time, memory, files and network."""

    async def work(arguments: Mapping[str, Any]) -> str:
        code = arguments.get("code")
        if not isinstance(code, str):
            raise WrongArguments("the argument code is to be of the type string.")
        outcome = await run(code)
        text = outcome.stdout if outcome.error is None else f"{outcome.stdout}\nError: {outcome.error}".strip()
        # The end says what went wrong, and the beginning what was printed first.
        half = MOST_OUTPUT // 2
        return text if len(text) <= MOST_OUTPUT else f"{text[:half]}\n…\n{text[-half:]}"

    return Offered(PYTHON, work)


def server_tools(tools: Sequence[Tool], call: CallTool) -> list[Offered]:
    """The tools of a registered server, by a function that calls one of them by its name. What that raises as
    ToolFailure is told to the model and counted, a ToolTimeout by itself."""

    def work_of(name: str) -> Callable[[Mapping[str, Any]], Awaitable[str]]:
        async def work(arguments: Mapping[str, Any]) -> str:
            return await call(name, arguments)

        return work

    return [Offered(tool, work_of(tool.name)) for tool in tools]


__all__ = ["CallTool", "Outcome", "RunCode", "ToolFailure", "ToolTimeout", "python_tool", "server_tools"]

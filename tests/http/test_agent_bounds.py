"""A loop over tools whose bound is reached: its calls are told, and that nobody made them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loreloop.http.generation.agent_loop import UNMADE, Tools
from loreloop.http.openai import agent_completions
from loreloop.mcp.toolbox import Bounds, Toolbox, ToolCaller
from loreloop.store.rows import ToolCallRecord
from loreloop.text.tools.tool_calls import Tool
from tests.http.scripted import CHAT, Script, play_script

CALL = '<tool_call>\n{"name": "server__f", "arguments": {"x": 1}}\n</tool_call>'


class Spent(Tools):
    """No time is left for any call."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Toolbox]:  # type: ignore[override]
        yield Toolbox({}, (Tool("server__f", "", {"type": "object"}),), self.bounds, self.caller, deadline=0.0)


async def record(call: ToolCallRecord) -> None:
    raise AssertionError("a call was made")


@pytest.mark.parametrize("stream", [False, True])
def test_calls_behind_a_bound_are_told_as_not_made(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spent = Spent((), Bounds(), ToolCaller("k", "r", record))

    async def scene(script: Script) -> None:
        monkeypatch.setattr(agent_completions, "tools_of", lambda *_: spent)
        asked = {"tools": [{"type": "mcp", "server_label": "server"}], "agent_loop": {}}
        if stream:
            choices = [c for event in await script.events(CHAT, CALL, **asked) for c in event["choices"]]
            (call,) = [call for c in choices for call in c["delta"].get("tool_calls", ())]
            warning, finish = choices[-1]["delta"]["warning"], choices[-1]["finish_reason"]
        else:
            answer = await script.whole(CHAT, CALL, **asked)
            assert answer["tool_trace"] == []
            (choice,) = answer["choices"]
            (call,) = choice["message"]["tool_calls"]
            warning, finish = choice["message"]["warning"], choice["finish_reason"]
        assert (call["function"]["name"], warning, finish) == ("server__f", UNMADE, "tool_calls")

    play_script(scene)

"""A loop over registered tools is one turn, which holds the calls that the server made and what they gave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from loreloop.http.generation.agent_loop import Tools
from loreloop.http.openai import agent_completions
from loreloop.mcp.toolbox import Bounds, Toolbox, ToolCaller
from loreloop.protocol.sampling import SampleOp
from loreloop.protocol.token_ids import unpack_ids
from loreloop.store.rows import ToolCallRecord
from loreloop.text.tools.tool_calls import Tool
from tests.http.recorded import Room, play_recorded

OWN: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ASKED: dict[str, Any] = {"tools": [OWN, {"type": "mcp", "server_label": "server"}], "extra_body": {"agent_loop": {}}}
CALL = '<tool_call>\n{"name": "server__f", "arguments": {"x": 1}}\n</tool_call>'


class Answering(Toolbox):
    async def call(self, name: str, arguments: str) -> str:
        self.n_calls += 1
        return f"42 from {name}"


class OneTool(Tools):
    @asynccontextmanager
    async def open(self) -> AsyncIterator[Toolbox]:  # type: ignore[override]
        tools = (Tool("server__f", "", {"type": "object"}),)
        yield Answering({}, tools, self.bounds, self.caller, deadline=float("inf"))


async def record(call: ToolCallRecord) -> None:
    raise AssertionError("nothing is really called")


def call_and_answer(room: Room, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Has the model call the one tool, and then say what it gave; the tokens of both."""
    monkeypatch.setattr(agent_completions, "tools_of", lambda *_: OneTool((), Bounds(), ToolCaller("k", "r", record)))
    speaker, encode = room.script.speaker, room.script.text.tokenizer.encode
    says = [[*encode(CALL), 0], [*encode("it is 42"), 0]]
    n_before = len(speaker.heard)  # the deployment's weights have answered once

    def draw(op: SampleOp, index: int, position: int) -> int:
        asked_for = [*dict.fromkeys(heard.request_id for heard in speaker.heard[n_before:])]
        return says[asked_for.index(op.request_id)][position]

    monkeypatch.setattr(speaker, "draw", draw)
    return says


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_is_kept_with_its_calls_and_results(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(room: Room) -> None:
        says = call_and_answer(room, monkeypatch)
        answer_id = (await room.streamed("", **ASKED))[0].id if stream else (await room.ask("", **ASKED)).id
        (turn,) = await room.turns()
        assert (turn["id"], turn["answer"]["content"], turn["finish_reason"]) == (answer_id, "it is 42", "stop")
        assert turn["tokens"] == says[1]
        # The prompt is the one that these tokens were sampled behind: it holds the call, and what it gave.
        last = room.script.speaker.heard[-1]
        assert turn["prompt"] == [token for chunk in last.prompt for token in unpack_ids(chunk.tokens).tolist()]
        shown = room.script.text.tokenizer.decode(turn["prompt"])
        assert "42 from server__f" in shown
        assert [tool["function"]["name"] for tool in turn["tools"]] == ["f", "server__f"]
        *_, call, result = turn["messages"]
        assert call["tool_calls"][0]["function"] == {"name": "server__f", "arguments": '{"x": 1}'}
        assert result == {"role": "tool", "content": "42 from server__f", "tool_call_id": call["tool_calls"][0]["id"]}

    play_recorded(scene)


def test_a_streamed_loop_ends_where_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(room: Room) -> None:
        await room.deploy("silent", record=False)
        call_and_answer(room, monkeypatch)
        chunks = await room.streamed("", model="silent", **ASKED)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "it is 42"
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert room.site.services.recorder.whereabouts(chunks[0].id) == "unknown"
        assert await room.turns("silent") == []

    play_recorded(scene)

"""Registered MCP servers: called by the server within bounds, recorded, and refused plainly where they are missing."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from loreloop.cli.chat import Talk
from loreloop.cli.server import RunningServer
from loreloop.mcp.toolbox import Bounds, ToolCaller, open_toolbox
from loreloop.protocol.errors import BadRequest
from loreloop.store.rows import ToolCallRecord, ToolServer
from tests.processes import children_called

ADDER = Path(__file__).parent / "adder.py"


def tools(server: RunningServer, *arguments: str) -> str:
    verb, *rest = arguments
    command = [sys.executable, "-m", "loreloop.cli", "tools", verb, "--data", str(server.data), *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def client(server):
    tools(server, "add", "adder", "--", sys.executable, str(ADDER))
    tools(server, "add", "wrapped", "--", "sh", "-c", '"$0" "$1"; exit', sys.executable, str(ADDER))
    tools(server, "add", "gone", "--no-check", "--", "no-such-program")
    yield openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
    for name in ("adder", "wrapped"):
        tools(server, "remove", name)


def ask(
    client, tool: str, label: str = "adder", stream=False, stream_options=None, max_tokens=200, asked="double 4", **loop
):
    """Forced to call one tool of the server once; what follows is up to the random weights."""
    return client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": asked}],
        max_tokens=max_tokens,
        seed=1,
        stream=stream,
        **({"stream_options": stream_options} if stream_options else {}),
        tool_choice={"type": "function", "function": {"name": f"{label}__{tool}"}},
        tools=[{"type": "mcp", "server_label": label}],
        extra_body={"agent_loop": {"max_calls": 1, **loop}},
    )


def test_a_tool_is_called_and_the_model_goes_on(client, server):
    answer = ask(client, "double")
    (call,) = answer.tool_trace
    x = json.loads(call["arguments"])["x"]
    assert (call["name"], call["output"]) == ("adder__double", f"twice {x} is {2 * x}")
    recorded = json.loads(tools(server, "calls", "--json"))[0]
    assert (recorded["server"], recorded["tool"], recorded["outcome"]) == ("adder", "double", "ok")


def test_failures_and_slow_tools_are_told_to_the_model(client, server):
    assert "Error executing" in ask(client, "fail").tool_trace[0]["output"]
    # The bound is one of the whole loop: on a busy machine the first answer alone may take as long.
    traces = (ask(client, "sleep", max_seconds=seconds).tool_trace for seconds in (3, 10, 40))
    assert "in time" in next(trace for trace in traces if trace)[0]["output"]
    outcomes = [call["outcome"] for call in json.loads(tools(server, "calls", "--json", "--limit", "2"))]
    assert outcomes == ["timeout", "error"]


def test_a_stream_tells_the_text_and_the_tools(client):
    whole = ask(client, "double")
    content, activity, finish = "", [], None
    for chunk in ask(client, "double", stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            activity += [choice.delta.tool_activity] if hasattr(choice.delta, "tool_activity") else []
            finish = choice.finish_reason or finish
    (call,) = whole.tool_trace
    began, ended = activity
    assert (began["type"], began["name"], began["arguments"]) == ("call", call["name"], call["arguments"])
    assert (ended["type"], ended["id"], ended["output"]) == ("result", began["id"], call["output"])
    assert (content, finish) == (whole.choices[0].message.content, whole.choices[0].finish_reason)
    assert chunk.usage.total_tokens == whole.usage.total_tokens


def test_chat_in_the_terminal_shows_what_tools_do(client, server, capsys):
    with httpx.Client(
        base_url=f"{server.url}/v1", headers={"authorization": f"Bearer {server.key}"}, timeout=60
    ) as http:
        tools = [{"type": "mcp", "server_label": "adder"}]
        settings = {
            "tools": tools,
            "agent_loop": {"max_calls": 1},
            "tool_choice": "required",
            "max_tokens": 200,
            "seed": 1,
        }
        Talk(http, "tiny", "", settings).say("double 4")
    assert re.search(r"\[adder__\w+ \{.*\n\[adder__\w+ -> ", capsys.readouterr().err)


def test_a_stream_that_is_left_ends_its_tool(client, server):
    with ask(client, "sleep", max_seconds=600, stream=True) as stream:
        next(chunk for chunk in stream if chunk.choices and hasattr(chunk.choices[0].delta, "tool_activity"))
    until_gone([str(ADDER)])
    with pytest.raises(openai.BadRequestError, match="'gone' cannot be reached"):
        ask(client, "x", "gone", stream=True)


@pytest.mark.parametrize("label", ["adder", "wrapped"])
def test_a_killed_server_takes_a_tool_in_the_middle_of_a_call_along(client, server, label):
    """Also one that the registered command has started itself, as npx and uvx do."""
    (process,) = children_called(server.pid, "http_process")
    with ask(client, "sleep", label, max_seconds=600, stream=True) as stream:
        next(chunk for chunk in stream if chunk.choices and hasattr(chunk.choices[0].delta, "tool_activity"))
        assert running([str(ADDER)])
        process.send_signal(signal.SIGKILL)
        until_gone([str(ADDER)])
    for _ in range(300):
        try:
            httpx.get(f"{server.url}/healthz")
            break
        except httpx.HTTPError:
            time.sleep(0.1)


def test_a_whole_answer_that_nobody_waits_for_ends_its_tool(client):
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=3), "sleep", max_seconds=600)
    until_gone([str(ADDER)])


def test_a_file_that_may_not_be_executed_is_not_called_missing(tmp_path):
    (tmp_path / "tool.py").write_text("#!/usr/bin/env python3\n")

    async def record(call: ToolCallRecord) -> None:
        raise AssertionError(call)

    async def opened() -> None:
        server = ToolServer("plain", (str(tmp_path / "tool.py"),), None)
        async with open_toolbox([server], Bounds(), ToolCaller("key", "request", record)):
            pass

    with pytest.raises(BadRequest, match=r"'plain' cannot be reached: .*Permission denied.*tool\.py"):
        asyncio.run(opened())


def until_gone(words: list[str]) -> None:
    for _ in range(100):
        if not running(words):
            return
        time.sleep(0.1)
    raise AssertionError(f"{words} still runs")


def running(words: list[str]) -> bool:
    return any(set(words) <= set(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))


def test_long_outputs_are_cut(client):
    assert ask(client, "double", max_output_bytes=5).tool_trace[0]["output"] == "twice\n[cut]"


def test_a_call_that_is_cut_off_is_neither_made_nor_handed_on(client):
    answer = ask(client, "double", max_tokens=20)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.tool_calls, answer.tool_trace) == ("length", None, [])
    assert "could not be read" in choice.message.warning


def test_what_is_missing_is_said(client):
    with pytest.raises(openai.BadRequestError, match="'gone' cannot be reached"):
        ask(client, "x", "gone")
    with pytest.raises(openai.NotFoundError, match="no tool server 'nobody'"):
        ask(client, "x", "nobody")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="context window"):
            ask(client, "double", stream=stream, asked="double " * 9000)
    with pytest.raises(openai.BadRequestError, match="agent_loop"):
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x"}], tools=[{"type": "mcp", "server_label": "adder"}]
        )

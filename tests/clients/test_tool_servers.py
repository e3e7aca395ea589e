"""Tool servers by URL, those that are none, and those that answer with more than anybody can read."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from loreloop.cli.server import RunningServer
from tests.clients.test_large_requests import GROWTH_MIB, LONGEST_GAP_SECONDS, watched
from tests.clients.test_server_tools import ask, tools

SHOUTER = Path(__file__).parent / "shouter.py"


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """Where the adder answers over HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tests.clients.adder_over_http", str(port)])
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            httpx.get(f"{url}/page")
            break
        except httpx.ConnectError:
            assert process.poll() is None
            time.sleep(0.1)
    yield url
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def client(server: RunningServer, web: str) -> Iterator[openai.OpenAI]:
    urls = {
        "web": f"{web}/mcp",
        "nowhere": "http://127.0.0.1:9/mcp",
        "elsewhere": f"{web}/nothing",
        "page": f"{web}/page",
        "json": f"{web}/json",
        "endless": f"{web}/endless",
    }
    for name, url in urls.items():
        tools(server, "add", name, "--no-check", "--url", url)
    tools(server, "add", "shouter", "--", sys.executable, str(SHOUTER))
    yield openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
    for name in (*urls, "shouter"):
        tools(server, "remove", name)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_with_a_url_is_called(client: openai.OpenAI, stream: bool) -> None:
    if not stream:
        assert ask(client, "double", "web").tool_trace[0]["output"].startswith("twice ")
        return
    deltas = [choice.delta for chunk in ask(client, "double", "web", stream=True) for choice in chunk.choices]
    outputs = [d.tool_activity["output"] for d in deltas if hasattr(d, "tool_activity") and "output" in d.tool_activity]
    assert outputs[0].startswith("twice ")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["nowhere", "elsewhere", "page", "json"])
def test_what_is_no_tool_server_is_the_callers_to_know(client: openai.OpenAI, name: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=f"tool server '{name}' cannot be reached: .+"):
        ask(client, "x", name, stream=stream)


@pytest.mark.parametrize(
    "url", ["not a url", "mcp", "ftp://host/mcp", "http://", "http://host:99999/mcp", "http://a b/"]
)
def test_a_url_that_is_none_is_not_registered(server: RunningServer, url: str) -> None:
    command = [sys.executable, "-m", "loreloop.cli", "tools", "add", "--data", str(server.data), "wrong", "--url", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "is no address of a tool server" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timed
@pytest.mark.parametrize(("name", "tool"), [("endless", "shout2"), ("shouter", "shout")])
def test_an_endless_result_is_cut_off(client: openai.OpenAI, server: RunningServer, name: str, tool: str) -> None:
    """The tool of the URL stands on the last page of its list."""
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as other, watched(server, other) as watch:
        output = ask(client, tool, name, max_seconds=20).tool_trace[0]["output"]
    assert "over 16 MiB" in output
    assert max(watch.gaps.values()) < LONGEST_GAP_SECONDS, watch.gaps
    assert watch.most - watch.before < GROWTH_MIB << 20

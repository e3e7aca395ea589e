"""Claude Code, headless and unmodified, against a live server: alone, with its own tools, streamed, with a schema."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from loreloop.cli.server import RunningServer
from tests.clients.environments import INSTALLED, node, run
from tests.clients.forecaster import ANSWER, FORECAST, HEARD, PLAIN, RUN, forecasting_server

BARE = ("--system-prompt", "x", "--tools", "")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forecasts() -> Iterator[RunningServer]:
    with forecasting_server() as running:
        yield running


def claude(server: RunningServer, home: Path, prompt: str, *arguments: str) -> str:
    wrapper = INSTALLED / "js" / "node_modules" / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs"
    done = run(
        [str(node()), str(wrapper), "--print", prompt, "--model", "fake", *arguments],
        home,
        ANTHROPIC_BASE_URL=f"{server.url}/anthropic/api",
        ANTHROPIC_API_KEY=server.key,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def events(server: RunningServer, home: Path, prompt: str, *arguments: str) -> list[dict]:
    lines = claude(server, home, prompt, "--verbose", "--output-format", "stream-json", *arguments).splitlines()
    return [json.loads(line) for line in lines]


def test_it_answers_and_goes_on(forecasts: RunningServer, tmp_path: Path) -> None:
    assert claude(forecasts, tmp_path, "hi", *BARE) == PLAIN
    assert claude(forecasts, tmp_path, "hi", *BARE, "--continue") == PLAIN


def test_it_shows_an_answer_as_it_is_written(forecasts: RunningServer, tmp_path: Path) -> None:
    told = events(forecasts, tmp_path, "hi", *BARE, "--include-partial-messages")
    deltas = [event["event"]["delta"] for event in told if event.get("event", {}).get("type") == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == PLAIN
    assert len(deltas) > 3


def test_it_runs_its_own_tools(forecasts: RunningServer, tmp_path: Path) -> None:
    told = events(forecasts, tmp_path, "How is the weather in Oslo?", "--allowedTools", "Bash(echo:*)")
    blocks = [block for event in told for block in event.get("message", {}).get("content", ())]
    assert [block["input"] for block in blocks if block["type"] == "tool_use"] == [RUN]
    assert [block["content"] for block in blocks if block["type"] == "tool_result"] == [HEARD]
    assert told[-1]["result"] == ANSWER


def test_it_fills_a_schema(forecasts: RunningServer, tmp_path: Path) -> None:
    asked = ("How is the weather in Oslo?", *BARE, "--output-format", "json", "--json-schema", json.dumps(SCHEMA))
    assert json.loads(claude(forecasts, tmp_path, *asked))["structured_output"] == FORECAST

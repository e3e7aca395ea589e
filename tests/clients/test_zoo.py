"""Other people's clients, unmodified, against a live server: plain, streamed, a tool's round trip, structured output.

What is said is scripted (`forecaster.py`), so that a test is decided by what passes between server and client alone.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loreloop.cli.server import RunningServer
from tests.clients.environments import addressed, command, run
from tests.clients.forecaster import ANSWER, FORECAST, PLAIN, forecasting_server

ALL = frozenset({"plain", "streamed", "tool", "streamed tool", "structured"})
FORMS = frozenset({"structured", "streamed structured", "structured list"})
TURNS = frozenset({"second turn", "second turn after a tool", "streamed structured"})
BY_OUTPUT = frozenset({"second turn", "structured by a prompt", "structured after a tool"})
OPEN_ENDED = frozenset({"plain", "streamed"})
# What each script plays, by its ways of asking: a scene that is left out by mistake is a failure, too.
PLAYED: dict[str, dict[str, frozenset[str]]] = {
    "agents/openai_scenes.py": {"chat": ALL, "responses": ALL},
    "agents/anthropic_scenes.py": {"messages": ALL},
    "agents/litellm_scenes.py": {"openai": ALL, "anthropic": ALL},
    "agents/openai_agents_scenes.py": {"chat": ALL, "responses": ALL},
    "agents/langchain_scenes.py": {
        "chat": ALL,
        "chat, by a function": ALL,
        "chat, in JSON": frozenset({"structured"}),
        "responses": ALL,
        "messages": ALL,
        "messages, by a schema": ALL,
    },
    "agents/pydantic_ai_scenes.py": {
        "chat": ALL | BY_OUTPUT | {"structured by a schema"},
        "responses": ALL | BY_OUTPUT | {"structured by a schema"},
        "messages": ALL | BY_OUTPUT,
    },
    "agents/smolagents_scenes.py": {"chat": ALL},
    "agents/dspy_scenes.py": dict.fromkeys(("openai", "anthropic"), OPEN_ENDED | {"structured"}),
    "agents/llm_scenes.py": {"chat": ALL - {"streamed"} | {"streamed at the end", "second turn"}},
    "indexes/llama_index_scenes.py": {"chat": ALL | {"structured by a schema"}, "completions": OPEN_ENDED},
    "indexes/instructor_scenes.py": dict.fromkeys(
        ("tool_call", "json_mode", "json_schema_mode", "markdown_json_mode", "anthropic_tools", "anthropic_json"), FORMS
    ),
    "js/ai_sdk.mjs": dict.fromkeys(
        (
            "openai, responses",
            "openai, chat",
            "openai-compatible",
            "openai-compatible, structured outputs",
            "anthropic",
        ),
        ALL | TURNS,
    ),
    "js/openai_client.mjs": {"chat": ALL, "responses": ALL},
    "js/anthropic_client.mjs": {"messages": ALL | {"counted"}},
}


@pytest.fixture(scope="module")
def forecasts() -> Iterator[RunningServer]:
    with forecasting_server() as running:
        yield running


def expected(scene: str) -> Any:
    if scene == "counted":
        return True
    if "structured" in scene:
        return [FORECAST] if scene.endswith("list") else FORECAST
    if scene.endswith("after a tool"):
        return ANSWER
    return {"heard": ["Oslo"], "answer": ANSWER} if scene.endswith("tool") else PLAIN


def right(scene: str, found: Any) -> bool:
    if scene == "streamed":  # its parts as they came
        return "".join(found) == PLAIN and sum(map(bool, found)) > 3
    return found == expected(scene)


@pytest.mark.slow
@pytest.mark.parametrize("script", PLAYED)
def test_a_client_gets_what_it_asks_for(forecasts: RunningServer, tmp_path: Path, script: str) -> None:
    done = run([*command(script), *addressed(forecasts)], tmp_path)
    assert done.returncode == 0, done.stderr
    ways = json.loads(done.stdout.splitlines()[-1])
    assert {way: frozenset(scenes) for way, scenes in ways.items()} == PLAYED[script]
    wrong = [f"{way}, {name}: {found}" for way in ways for name, found in ways[way].items() if not right(name, found)]
    assert not wrong, "\n".join(wrong)

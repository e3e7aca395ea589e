"""The table of docs/clients.md against what is installed and played: versions, and which cells a test stands behind."""

import json
import re

import pytest

from tests.clients import test_claude_code as claude
from tests.clients.environments import JS, ROOT, ZOO
from tests.clients.test_zoo import PLAYED

PAGE = (ROOT / "docs" / "clients.md").read_text()
TABLE = PAGE.split("<!-- clients: every row is tested -->")[1].split("<!-- end of clients -->")[0].strip()
COLUMNS = ("plain", "streamed", "tool", "structured")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines()[2:]]
# Which script plays a client, and in which of its ways (by their first words).
SCRIPTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "openai (Python)": ("agents/openai_scenes.py", ("chat", "responses")),
    "anthropic (Python)": ("agents/anthropic_scenes.py", ("messages",)),
    "litellm": ("agents/litellm_scenes.py", ("openai", "anthropic")),
    "openai-agents": ("agents/openai_agents_scenes.py", ("chat", "responses")),
    "openai (JavaScript)": ("js/openai_client.mjs", ("chat", "responses")),
    "@anthropic-ai/sdk": ("js/anthropic_client.mjs", ("messages",)),
    "@ai-sdk/openai": ("js/ai_sdk.mjs", ("openai, responses", "openai, chat")),
    "@ai-sdk/openai-compatible": ("js/ai_sdk.mjs", ("openai-compatible",)),
    "@ai-sdk/anthropic": ("js/ai_sdk.mjs", ("anthropic",)),
    "langchain-openai": ("agents/langchain_scenes.py", ("chat", "responses")),
    "langchain-anthropic": ("agents/langchain_scenes.py", ("messages",)),
    "llama-index-llms-openai-like": ("indexes/llama_index_scenes.py", ("chat",)),
    "instructor": ("indexes/instructor_scenes.py", ("tool_call", "anthropic_tools")),
    "pydantic-ai-slim": ("agents/pydantic_ai_scenes.py", ("chat", "responses", "messages")),
    "smolagents": ("agents/smolagents_scenes.py", ("chat",)),
    "dspy": ("agents/dspy_scenes.py", ("openai", "anthropic")),
    "llm": ("agents/llm_scenes.py", ("chat",)),
}
# Tests of a client that no script plays, for each column.
OWN = {
    "@anthropic-ai/claude-code": {
        "plain": claude.test_it_answers_and_goes_on,
        "streamed": claude.test_it_shows_an_answer_as_it_is_written,
        "tool": claude.test_it_runs_its_own_tools,
        "structured": claude.test_it_fills_a_schema,
    }
}
BY_HAND = {"aider-chat": "0.86.2"}


def name_of(row: list[str]) -> str:
    return row[0].replace("`", "").split(" (ai ")[0]


def pinned() -> dict[str, str]:
    """Versions by package, of Python's and JavaScript's."""
    lines = [line for file in ZOO.glob("*.txt") for line in file.read_text().splitlines() if "==" in line]
    python = dict(re.sub(r"\[.*\]", "", line).split("==") for line in lines)
    script = json.loads((JS / "package.json").read_text())["dependencies"]
    both = {f"{name} (Python)": python[name] for name in ("openai", "anthropic")}
    return python | script | both | {"openai (JavaScript)": script["openai"]} | BY_HAND


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_a_row_names_the_version_that_is_tried(row: list[str]) -> None:
    assert row[1] == pinned()[name_of(row)]
    assert ("`ai`" in row[0]) == row[0].startswith("`@ai-sdk") == (f"`ai` {pinned()['ai']}" in row[0])


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_a_row_says_what_is_played(row: list[str]) -> None:
    name, said = name_of(row), dict(zip(COLUMNS, row[3:], strict=True))
    if name in BY_HAND:
        assert set(said.values()) <= {"by hand", "–"}
    elif name in OWN:
        assert said == dict.fromkeys(OWN[name], "yes")
    else:
        script, ways = SCRIPTS[name]
        for way in ways:
            scenes = {scene.split(" at ")[0] for scene in PLAYED[script][way]}
            assert {column: "yes" if column in scenes else "–" for column in COLUMNS} == said, way


def test_every_client_that_is_played_has_a_row() -> None:
    assert {name_of(row) for row in ROWS} == {*SCRIPTS, *OWN, *BY_HAND}
    assert {script for script, _ in SCRIPTS.values()} == PLAYED.keys()

"""Each cell of the matrix in docs/clients.md: a served field is accepted, another one refused by name."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from loreloop.protocol.anthropic_rest import Messages
from loreloop.protocol.openai_rest import ChatCompletion, Completion
from loreloop.protocol.responses_rest import CreateResponse
from tests.http.site import Site, play

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("|").split("|")]
    for line in PAGE.split("<!-- matrix")[1].split("<!-- end of matrix")[0].splitlines()
    if line.startswith("| `")
]
CHAT = [{"role": "user", "content": "11 12"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ROUTES: list[tuple[str, type[msgspec.Struct], dict[str, Any]]] = [
    ("/v1/completions", Completion, {"prompt": "11 12"}),
    ("/v1/chat/completions", ChatCompletion, {"messages": CHAT}),
    ("/v1/responses", CreateResponse, {"input": "11 12"}),
    ("/anthropic/api/v1/messages", Messages, {"messages": CHAT, "max_tokens": 3}),
]
CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
VALUES: dict[str, Any] = {
    "max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 16, "temperature": 0.5, "top_p": 0.5, "top_k": 3,
    "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.1, "logit_bias": {"5": 1},
    "seed": 7, "n": 2, "stop": ["x"], "stop_sequences": ["x"], "stream": True, "stream_options": {},
    "filtered_logprobs": True, "echo": True, "grammar": 'start: "11"', "regex": "1+",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "parallel_tool_calls": False, "reasoning_effort": "low", "reasoning": {"effort": "low"},
    "thinking": {"type": "enabled", "budget_tokens": 1024}, "chat_template_kwargs": {"enable_thinking": False},
    "instructions": "11", "system": "11", "user": "u", "metadata": {"user_id": "u"},
}  # fmt: skip
BY_ROUTE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"logprobs": 2},
    "/v1/chat/completions": {"logprobs": True, "tools": [CHAT_TOOL], "tool_choice": "none", "agent_loop": {}},
    "/v1/responses": {"tools": [{"type": "function", "name": "f"}], "tool_choice": "none"},
    "/anthropic/api/v1/messages": {"tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "none"}},
}


@pytest.mark.parametrize("number", range(4), ids=[route for route, _, _ in ROUTES])
def test_each_cell_is_as_the_matrix_says(number: int) -> None:
    route, _, needed = ROUTES[number]

    async def scene(site: Site) -> None:
        for name, *cells in ROWS:
            value = BY_ROUTE[route].get(name, VALUES.get(name, 1))
            body = {"model": "fake"} | needed | {name: value}
            if name == "top_logprobs" and number == 1:
                body["logprobs"] = True
            answer = await site.client.post(f"http://site{route}", json=body)
            if cells[number] == "yes":
                assert answer.status_code == 200, (route, name, answer.text)
            else:
                assert (answer.status_code, name in answer.text) == (400, True), (route, name, answer.text)

    play(scene)


NOTES = {"service_tier", "safety_identifier", "prompt_cache_key", "cache_control", "store", "modalities", "truncation"}
EMPTY = {"conversation", "background", "include", "top_logprobs"}  # accepted where they change nothing


@pytest.mark.parametrize("number", range(4), ids=[route for route, _, _ in ROUTES])
def test_every_field_stands_in_the_matrix(number: int) -> None:
    _, body, needed = ROUTES[number]
    served = {name for name, *cells in ROWS if cells[number] == "yes"}
    fields = {field.encode_name for field in msgspec.structs.fields(body)}
    assert served <= fields
    assert fields - served - NOTES - EMPTY - set(needed) - {"model", "previous_response_id"} == set()

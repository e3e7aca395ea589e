"""Bodies as clients send them: nulls and notes change nothing, however deep; an odd value has its meaning."""

import json
import time
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.http.bodies import decode_as_sent
from loreloop.protocol.anthropic_rest import Messages
from loreloop.protocol.as_sent import choices_at
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.openai_rest import ChatCompletion, Completion
from loreloop.protocol.responses_rest import CreateResponse
from tests.http.site import Site, play

SCHEMA = {"type": "object", "properties": {"a": {"default": None, "enum": [1, None]}}}
EDIT = {"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 1}}
FULL: list[tuple[type[msgspec.Struct], dict[str, Any]]] = [
    (Completion, {"model": "m", "prompt": ["a"], "max_tokens": 0, "stream_options": {"include_usage": True}, "n": 1}),
    (
        ChatCompletion,
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]},
                {
                    "role": "assistant",
                    "content": "x",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "content": "r", "tool_call_id": "c"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": False}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
            "chat_template_kwargs": {"a": None},
            "agent_loop": {"max_calls": 3},
        },
    ),
    (
        CreateResponse,
        {
            "model": "m",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "t"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "a"}]},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}],
            "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "low"},
            "reasoning": {"effort": "low", "summary": "auto"},
            "metadata": {"a": None},
        },
    ),
    (
        Messages,
        {
            "model": "m",
            "max_tokens": 5,
            "system": [{"type": "text", "text": "s", "citations": None}],
            "messages": [
                {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "u", "x": None}}]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": None}}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}]}
                    ],
                },
            ],
            "tools": [{"name": "f", "input_schema": SCHEMA, "eager_input_streaming": True, "strict": False}],
            "context_management": {
                "edits": [{"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 1}}]
            },
        },
    ),
]
USERS = {
    "parameters",
    "schema",
    "input_schema",
    "chat_template_kwargs",
    "metadata",
    "input",
    "source",
}  # their own data


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every object in which fields stand, but not the caller's own data."""
    found = [path] if isinstance(value, dict) else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        if name not in USERS or (name == "input" and isinstance(inner, list)):
            found += places(inner, (*path, name))
    return found


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


def read(body: dict[str, Any], kind: type[msgspec.Struct]) -> msgspec.Struct | None:
    try:
        return decode_as_sent(json.dumps(body).encode(), kind)
    except BadRequest:
        return None


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(FULL), st.data())
def test_null_is_the_same_as_left_out_wherever_it_stands(full: Any, data: st.DataObject) -> None:
    kind, body = full
    nulled, without = json.loads(json.dumps(body)), json.loads(json.dumps(body))
    for path in data.draw(st.lists(st.sampled_from(places(body)), min_size=1, max_size=4, unique=True)):
        for name in data.draw(st.lists(st.sampled_from([*at(body, path), "unknown"]), unique=True)):
            try:
                at(nulled, path)[name] = None
                at(without, path).pop(name, None)
            except (KeyError, TypeError):
                pass  # what it stood in is null by now
    assert read(nulled, kind) == read(without, kind)


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}}}


@pytest.mark.parametrize(
    ("kind", "field", "turn"),
    [
        (ChatCompletion, "messages", {"role": "assistant", "content": '{"a": 1}', "parsed": {"a": 1}}),
        (ChatCompletion, "messages", {"role": "assistant", "content": None, "tool_calls": [CALL]}),
        (CreateResponse, "input", {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}),
        (
            CreateResponse,
            "input",
            {"role": "assistant", "content": [{"type": "output_text", "text": "1", "parsed": 1, "logprobs": []}]},
        ),
    ],
)
def test_what_a_client_read_out_of_an_answer_may_come_back_with_it(kind: Any, field: str, turn: dict[str, Any]) -> None:
    read = turn | ({"parsed_arguments": {}} if "arguments" in turn else {})
    assert decode_as_sent(json.dumps({"model": "m", field: [read]}).encode(), kind)


def test_the_callers_own_data_keeps_its_nulls() -> None:
    chat = decode_as_sent(json.dumps(FULL[1][1]).encode(), ChatCompletion)
    assert chat.tools[0].function.parameters == SCHEMA  # type: ignore[index,union-attr]
    assert chat.chat_template_kwargs == {"a": None}
    messages = decode_as_sent(json.dumps(FULL[3][1]).encode(), Messages)
    assert messages.messages[1].content[0].input == {"a": None}  # type: ignore[union-attr]


def test_a_message_names_what_this_route_serves() -> None:
    assert choices_at(ChatCompletion, "$.tools[0].type") == ("function", "mcp")
    assert choices_at(Messages, "$.tools[3].type") == ("custom",)
    assert choices_at(Messages, "$.messages[0].content[1].type")[:2] == ("text", "image")
    assert choices_at(CreateResponse, "$.text.format.type") == ("text", "json_object", "json_schema")
    body = json.dumps(FULL[3][1] | {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}).encode()
    with pytest.raises(BadRequest, match="Here it is one of: custom"):
        decode_as_sent(body, Messages)


async def completion(site: Site, **fields: Any) -> httpx.Response:
    body = {"model": "fake", "prompt": "11 12", "max_tokens": 4, "temperature": 1.0} | fields
    return await site.client.post("http://site/v1/completions", json=body)


def test_each_seed_has_a_stream_of_its_own() -> None:
    seeds = [0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 2**64 - 1, 2**65]

    async def scene(site: Site) -> None:
        texts = [(await completion(site, seed=seed)).json()["choices"][0]["text"] for seed in seeds]
        assert len(set(texts)) == len(seeds)
        assert texts[0] == (await completion(site, seed=0)).json()["choices"][0]["text"]
        refused = await completion(site, seed=2**4000)
        assert (refused.status_code, "seed" in refused.text) == (400, True)

    play(scene)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["11 12", [11, 12], [[11, 12], [13, 14]]])
def test_no_tokens_may_be_asked_for(prompt: Any, stream: bool) -> None:
    async def scene(site: Site) -> None:
        scored = {} if stream else {"logprobs": 1}
        answer = await completion(site, prompt=prompt, max_tokens=0, echo=True, stream=stream, **scored)
        assert answer.status_code == 200, answer.text
        if stream:
            assert '"text":"11 12"' in answer.text
            n_prompts = len(prompt) if isinstance(prompt[0], list) else 1
            assert answer.text.count('"finish_reason":"length"') == n_prompts
            return
        for choice in answer.json()["choices"]:
            assert (choice["finish_reason"], len(choice["logprobs"]["tokens"])) == ("length", 2)
        assert answer.json()["choices"][0]["text"] == "11 12"
        assert answer.json()["usage"]["completion_tokens"] == 0

    play(scene)


def test_a_prompt_that_fills_the_window_can_be_scored() -> None:
    async def scene(site: Site) -> None:
        window = (await site.services.dispatcher.info("fake")).context_window
        answer = await completion(site, prompt=[11] * window, max_tokens=0, echo=True, logprobs=0)
        assert len(answer.json()["choices"][0]["logprobs"]["tokens"]) == window
        assert (await completion(site, prompt=[11] * (window + 1), max_tokens=0)).status_code == 400

    play(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_of_no_tokens_reads_the_prompt(stream: bool) -> None:
    async def scene(site: Site) -> None:
        body = {"model": "fake", "messages": [{"role": "user", "content": "11"}], "max_tokens": 0, "stream": stream}
        answer = await site.client.post("http://site/anthropic/api/v1/messages", json=body)
        assert '"stop_reason":"max_tokens"' in answer.text
        assert "content_block" not in answer.text
        assert '"output_tokens":0' in answer.text

    play(scene)


@pytest.mark.timed
@pytest.mark.parametrize("name", ["x" * 3_000_000, "\n" + "- at `$.a" * 300_000 + "`\nx"])
def test_a_long_name_is_neither_told_whole_nor_searched_for_long(name: str) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    wrong = [asked | {name: 1}, asked | {"tools": [{"type": name}]}, asked | {"reasoning_effort": name}]
    wrong += [asked | {"messages": [{"role": "user", "content": "hi", name: 1}]}]
    started = time.monotonic()
    for body in wrong:
        with pytest.raises(BadRequest) as refused:
            decode_as_sent(json.dumps(body).encode(), ChatCompletion)
        assert len(refused.value.message) < 1000
    assert time.monotonic() - started < 5

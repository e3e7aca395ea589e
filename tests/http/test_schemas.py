"""Schemas as clients send them, on three routes: held as far as they can be, with a warning; strict ones refused."""

import json
from typing import Any

import pytest

from loreloop.protocol.sampling import SampleOp
from tests.http.scripted import CHAT, FORCED, MESSAGES, RESPONSES, ROUTES, Script, play_script

DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"
SCHEMA = {
    "type": "object",
    "properties": {
        "price": {"type": "string", "pattern": DECIMAL},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "secret": {"type": "string", "format": "password"},
    },
    "required": ["price"],
}
LEFT_OUT = ("pattern at #/properties/price", "uniqueItems at #/properties/tags", "format at #/properties/secret")
SAID = '{"price":"1.5"}'


def format_of(route: str, schema: dict[str, Any], strict: bool | None = None) -> dict[str, Any]:
    about = {"name": "n", "schema": schema} | ({} if strict is None else {"strict": strict})
    return {
        CHAT: {"response_format": {"type": "json_schema", "json_schema": about}},
        RESPONSES: {"text": {"format": {"type": "json_schema", **about}}},
        MESSAGES: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    }[route]


def tool_of(route: str, strict: bool | None = None) -> list[dict[str, Any]]:
    about = {"name": "f"} | ({} if strict is None else {"strict": strict})
    return {
        CHAT: [{"type": "function", "function": {**about, "parameters": SCHEMA}}],
        RESPONSES: [{"type": "function", **about, "parameters": SCHEMA}],
        MESSAGES: [{**about, "input_schema": SCHEMA}],
    }[route]


def warning_of(route: str, answer: dict[str, Any]) -> str:
    return (answer["choices"][0]["message"] if route == CHAT else answer).get("warning", "")


def streamed_warning(route: str, events: list[dict[str, Any]]) -> str:
    if route == CHAT:
        (last,) = [e for e in events if e["choices"][0]["finish_reason"]]
        return last["choices"][0]["delta"].get("warning", "")
    if route == RESPONSES:
        return events[-1]["response"].get("warning", "")
    return next(event for event in events if event["type"] == "message_delta")["delta"].get("warning", "")


def grammar(script: Script) -> str:
    heard: SampleOp = script.speaker.heard[-1]
    return heard.params.grammar


@pytest.mark.parametrize("route", ROUTES)
def test_a_schema_is_held_as_far_as_it_can_be_and_the_answer_says_so(route: str) -> None:
    async def scene(script: Script) -> None:
        for strict in (None,) if route == MESSAGES else (None, False):
            asked = {"tools": None, **format_of(route, SCHEMA, strict)}
            warnings = [
                warning_of(route, await script.whole(route, SAID, **asked)),
                streamed_warning(route, await script.events(route, SAID, **asked)),
            ]
            assert warnings[0] == warnings[1]
            assert all(one in warnings[0] for one in LEFT_OUT), warnings
            assert '"additionalProperties": false' in grammar(script) or '"additionalProperties":false' in grammar(
                script
            )
        plain = {"type": "object", "properties": {"a": {"type": "string"}}}
        assert warning_of(route, await script.whole(route, "{}", tools=None, **format_of(route, plain))) == ""

    play_script(scene)


@pytest.mark.parametrize("route", ROUTES)
def test_so_is_a_forced_tools(route: str) -> None:
    async def scene(script: Script) -> None:
        said = f'<tool_call>\n{{"name": "f", "arguments": {SAID}}}\n</tool_call>'
        asked = {"tools": tool_of(route), "tool_choice": FORCED[route]}
        whole = warning_of(route, await script.whole(route, said, **asked))
        assert all(one in whole for one in LEFT_OUT)
        assert streamed_warning(route, await script.events(route, said, **asked)) == whole
        assert "(?!" in script.prompt()  # the model is told of the whole schema
        assert "(?!" not in grammar(script)
        cut = await script.whole(route, said[:40], **asked)
        assert "cut off" in warning_of(route, cut)
        assert LEFT_OUT[0] in warning_of(route, cut)

    play_script(scene)


@pytest.mark.parametrize("route", ROUTES)
def test_a_strict_one_is_refused_by_keyword_and_place(route: str) -> None:
    async def scene(script: Script) -> None:
        refused = [{"tools": tool_of(route, True)}]
        refused += [] if route == MESSAGES else [{"tools": None, **format_of(route, SCHEMA, True)}]
        for fields in refused:
            message = (await script.ask(route, SAID, 400, **fields)).json()["error"]["message"]
            assert all(one in message for one in LEFT_OUT), message

    play_script(scene)


@pytest.mark.parametrize("strict", [False, True])
def test_of_much_that_is_left_out_the_first_is_named(strict: bool) -> None:
    inner = {f"b{number}": {"not": {}} for number in range(300)}
    schema = {"type": "object", "properties": {"a" * 10_000: {"type": "object", "properties": inner}}}

    async def scene(script: Script) -> None:
        asked = {"tools": None, **format_of(CHAT, schema, strict)}
        answer = await script.ask(CHAT, "{}", 400 if strict else 200, **asked)
        assert "and 284 more" in answer.text
        assert len(answer.content) < 10_000

    play_script(scene)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": []},
        {"required": "a"},
        {"type": 5},
        {"anyOf": []},
        {"items": 3},
        {"$ref": "#/nowhere"},
        {"$defs": 3, "$ref": "#/$defs/x"},
        {"enum": 1},
        {"oneOf": 3, "allOf": {}},
        {"pattern": 3, "format": [], "minProperties": "x", "properties": {"a": 1}},
        json.loads('{"items":' * 60 + "{}" + "}" * 60),
        json.loads('{"items":' * 300 + "{}" + "}" * 300),
    ],
)
def test_nonsense_is_the_callers_fault(schema: dict[str, Any]) -> None:
    async def scene(script: Script) -> None:
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        for fields in ({"tools": None, **format_of(CHAT, schema)}, {"tools": tools, "tool_choice": "required"}):
            usual = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
            answer = await script.site.client.post(f"http://site{CHAT}", json=usual | fields)
            assert answer.status_code in (200, 400), answer.text

    play_script(scene)

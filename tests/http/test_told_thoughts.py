"""Thoughts on the three routes: apart from the text, streamed as such, and read back out of the history."""

import itertools
from typing import Any

import pytest

from tests.http.scripted import ASKING, CHAT, MESSAGES, RESPONSES, ROUTES, Script, play_script

N_CALLS = 200
SAID = "<think>\nlook é\n</think>\n\nHello <think>again</think>world"
Said = list[tuple[str, str]]


def parts(route: str, answer: dict[str, Any]) -> Said:
    """(kind, text) of what a whole answer holds, in its order; chat keeps thoughts and text apart only."""
    if route == CHAT:
        message = answer["choices"][0]["message"]
        return [("thought", message["reasoning_content"]), ("text", message["content"])]
    if route == RESPONSES:
        kinds = {"reasoning_text": "thought", "output_text": "text"}
        return [(kinds[part["type"]], part["text"]) for item in answer["output"] for part in item["content"]]
    kinds = {"thinking": "thought", "text": "text"}
    return [(kinds[block["type"]], block[block["type"]]) for block in answer["content"]]


def grown(route: str, events: list[dict[str, Any]]) -> Said:
    """The same out of a stream's deltas, put together."""
    found: Said = []
    for event in events:
        if route == CHAT:
            for choice in event["choices"]:
                delta = choice["delta"]
                found += [("thought", delta["reasoning_content"])] if "reasoning_content" in delta else []
                found += [("text", delta["content"])] if delta.get("content") else []
        elif route == RESPONSES:
            kinds = {"response.reasoning_text.delta": "thought", "response.output_text.delta": "text"}
            found += [(kinds[event["type"]], event["delta"])] if event["type"] in kinds else []
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            kinds = {"thinking_delta": ("thought", "thinking"), "text_delta": ("text", "text")}
            kind, field = kinds[delta["type"]]
            found.append((kind, delta[field]))
    if route == CHAT:
        return [(kind, "".join(t for k, t in found if k == kind)) for kind in ("thought", "text")]
    runs = itertools.groupby(found, key=lambda one: one[0])
    return [(kind, "".join(text for _, text in run)) for kind, run in runs]


@pytest.mark.parametrize("route", ROUTES)
def test_thoughts_are_apart_from_the_text_whole_and_streamed(route: str) -> None:
    async def scene(script: Script) -> None:
        whole = parts(route, await script.whole(route, SAID))
        if route == CHAT:
            assert whole == [("thought", "look éagain"), ("text", "Hello world")]
        else:
            assert whole == [("thought", "look é"), ("text", "Hello "), ("thought", "again"), ("text", "world")]
        assert grown(route, await script.events(route, SAID)) == whole

    play_script(scene)


@pytest.mark.parametrize("route", [CHAT, MESSAGES])
def test_stop_strings_count_in_the_answer_only(route: str) -> None:
    stops = {"stop_sequences" if route == MESSAGES else "stop": ["look", "again", "\n\n", "wor"]}

    async def scene(script: Script) -> None:
        whole = parts(route, await script.whole(route, SAID, **stops))
        if route == CHAT:
            assert whole == [("thought", "look éagain"), ("text", "Hello ")]
        else:
            assert whole == [("thought", "look é"), ("text", "Hello "), ("thought", "again")]
        assert grown(route, await script.events(route, SAID, **stops)) == whole
        assert script.speaker.heard[-1].params.thoughts == "possible"

    play_script(scene)


def test_thoughts_are_opened_and_closed_as_each_dialect_does() -> None:
    async def scene(script: Script) -> None:
        told = [event["type"] for event in await script.events(RESPONSES, "<think>a</think>b")]
        assert told[2:6] == [
            "response.output_item.added", "response.reasoning_text.delta",
            "response.reasoning_text.done", "response.output_item.done",
        ]  # fmt: skip
        events = await script.events(MESSAGES, "<think>a</think>b")
        assert events[1]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
        assert [event["type"] for event in events[1:5]] == [
            "content_block_start", "content_block_delta", "content_block_stop", "content_block_start",
        ]  # fmt: skip
        assert [event["index"] for event in events[1:7]] == [0, 0, 0, 1, 1, 1]

    play_script(scene)


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (MESSAGES, {"messages": [{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}]}),
        (RESPONSES, {"input": [{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}]}),
    ],
)
def test_encrypted_thoughts_are_refused_by_name(route: str, fields: dict[str, Any]) -> None:
    async def scene(script: Script) -> None:
        message = (await script.ask(route, "Hi.", 400, **fields)).json()["error"]["message"]
        assert "redacted_thinking" in message or "encrypted_content" in message

    play_script(scene)


def heard(route: str, answer: dict[str, Any], result: str) -> list[dict[str, Any]]:
    """What a client sends back of an answer: all of it, and what its one call returned."""
    if route == CHAT:
        message = answer["choices"][0]["message"]
        (call,) = message["tool_calls"]
        return [message, {"role": "tool", "tool_call_id": call["id"], "content": result}]
    if route == RESPONSES:
        (call,) = [item for item in answer["output"] if item["type"] == "function_call"]
        return [*answer["output"], {"type": "function_call_output", "call_id": call["call_id"], "output": result}]
    (call,) = [block for block in answer["content"] if block["type"] == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": result}]
    return [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": results}]


@pytest.mark.parametrize("route", ROUTES)
def test_two_hundred_calls_with_thoughts_between_them(route: str) -> None:
    async def scene(script: Script) -> None:
        history: list[dict[str, Any]] = list(ASKING)
        field = "input" if route == RESPONSES else "messages"
        for number in range(N_CALLS):
            call = f'<tool_call>\n{{"name": "f", "arguments": {{"x": {number}}}}}\n</tool_call>'
            said = f"<think>\nnow {number}.\n</think>\n\nCalling {number}.\n{call}"
            history += heard(route, await script.whole(route, said, **{field: history}), f"result {number}.")
        await script.ask(route, "Done.", **{field: history})
        prompt = script.prompt()
        for number in range(N_CALLS):
            for once in (f"now {number}.", f"Calling {number}.", f'{{"x": {number}}}', f"result {number}."):
                assert prompt.count(once) == 1, once

    play_script(scene)

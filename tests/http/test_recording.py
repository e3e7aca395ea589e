"""Turns of recording deployments, by the packages that people ask with: what is kept of which answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.http.recorded import ASKING, Room, play_recorded
from tests.http.scripted import CHAT, MESSAGES, RESPONSES, TOOLS

BODY = json.dumps({"model": "bot", "messages": ASKING, "max_tokens": 4000, "stream": True}).encode()
CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


def spoken(turn: dict[str, Any]) -> tuple[object, ...]:
    return turn["messages"], turn["answer"]["content"], turn["fate"], turn["arm"]


def test_a_whole_chat_is_kept_with_its_tokens() -> None:
    async def scene(room: Room) -> None:
        answer = await room.ask("yes, it is", user="ann")
        (turn,) = await room.turns()
        assert spoken(turn) == (ASKING, "yes, it is", "waiting", "main")
        assert turn["id"] == answer.id
        assert turn["episode_id"] == answer.episode_id
        assert turn["person"]["user"] == "ann"
        assert turn["person"]["key_id"]
        assert turn["tokens"] == [*room.script.text.tokenizer.encode("yes, it is"), 0]
        assert turn["logprobs"] == pytest.approx(
            [-token / 1000 for token in turn["tokens"]]
        )  # as the fake engine has it
        assert len(turn["prompt"]) == answer.usage.prompt_tokens
        assert (turn["finish_reason"], turn["base_model"], turn["revision"], turn["version"]) == (
            "stop",
            "fake",
            None,
            1,
        )
        assert await room.loop("GET", f"/turns/{answer.id}") == turn

    play_recorded(scene)


def test_a_stream_is_kept_as_the_whole_answer_would_be() -> None:
    async def scene(room: Room) -> None:
        chunks = await room.streamed("yes, it is", seed=3)
        await room.ask("yes, it is", seed=3)
        streamed, whole = await room.turns()
        assert {chunk.id for chunk in chunks} == {streamed["id"]}
        assert {chunk.episode_id for chunk in chunks} == {streamed["episode_id"]}
        own = {"number", "id", "episode_id", "created", "latency_seconds"}
        assert {k: v for k, v in streamed.items() if k not in own} == {k: v for k, v in whole.items() if k not in own}

    play_recorded(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_every_sample_of_a_request_is_a_turn(stream: bool) -> None:
    async def scene(room: Room) -> None:
        if stream:
            chunks = await room.streamed("a b", n=3)
            answer_id = chunks[0].id
        else:
            answer_id = (await room.ask("a b", n=3)).id
        turns = await room.turns()
        assert sorted(turn["id"] for turn in turns) == [answer_id, f"{answer_id}:1", f"{answer_id}:2"]
        assert {turn["answer"]["content"] for turn in turns} == {"a b"}

    play_recorded(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_kept_with_the_ids_that_the_client_got(stream: bool) -> None:
    async def scene(room: Room) -> None:
        if stream:
            chunks = await room.streamed(CALL, tools=TOOLS[CHAT])
            (call_id,) = [
                call.id for chunk in chunks for call in chunk.choices[0].delta.tool_calls or () if call.id is not None
            ]
        else:
            (call_id,) = [call.id for call in (await room.ask(CALL, tools=TOOLS[CHAT])).choices[0].message.tool_calls]
        (turn,) = await room.turns()
        (call,) = turn["answer"]["tool_calls"]
        assert (call["id"], call["function"]["name"], turn["finish_reason"]) == (call_id, "f", "tool_calls")
        assert [tool["function"]["name"] for tool in turn["tools"]] == ["f"]

    play_recorded(scene)


def test_tools_that_the_prompt_does_not_show_are_not_kept() -> None:
    async def scene(room: Room) -> None:
        await room.ask("yes", tools=TOOLS[CHAT], tool_choice="none")
        (turn,) = await room.turns()
        assert turn["tools"] == []

    play_recorded(scene)


def test_nothing_is_kept_where_nothing_is_recorded() -> None:
    async def scene(room: Room) -> None:
        await room.deploy("quiet", record=False)
        answer = await room.ask(model="quiet")
        base = await room.ask(model="fake", extra_body={"episode_id": "mine"})
        assert not hasattr(answer, "episode_id")
        assert not hasattr(base, "episode_id")
        assert await room.turns("quiet") == []
        assert await room.turns() == []

    play_recorded(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_responses_are_turns(stream: bool) -> None:
    async def scene(room: Room) -> None:
        room.says(f"well {CALL}")
        body: Any = {
            "model": "bot",
            "instructions": "be short",
            "input": "hi",
            "tools": TOOLS[RESPONSES],
            "user": "ann",
        }
        answer: Any = await room.openai().responses.create(stream=stream, **body)
        if stream:
            (answer,) = [event.response async for event in answer if event.type == "response.completed"]
        (turn,) = await room.turns()
        assert (turn["id"], turn["episode_id"], turn["messages"]) == (answer.id, answer.episode_id, ASKING)
        (call,) = turn["answer"]["tool_calls"]
        assert [call["id"]] == [item.call_id for item in answer.output if item.type == "function_call"]
        assert (turn["answer"]["content"], turn["finish_reason"], turn["person"]["user"]) == (
            "well",
            "tool_calls",
            "ann",
        )

    play_recorded(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_messages_are_turns(stream: bool) -> None:
    async def scene(room: Room) -> None:
        room.says(f"<think>hm</think>well {CALL}")
        begun: Any = [{"role": "user", "content": "hi"}]
        body: Any = {
            "model": "bot",
            "system": "be short",
            "messages": begun,
            "max_tokens": 400,
            "metadata": {"user_id": "ann"},
        }
        answer: Any = await room.anthropic().messages.create(stream=stream, tools=TOOLS[MESSAGES], **body)
        if stream:
            (answer,) = [event.message async for event in answer if event.type == "message_start"]
        (turn,) = await room.turns()
        assert (turn["id"], turn["episode_id"], turn["messages"]) == (answer.id, answer.episode_id, ASKING)
        assert turn["answer"]["content"] == "well"
        assert turn["answer"]["reasoning_content"] == "hm"
        assert [call["function"]["arguments"] for call in turn["answer"]["tool_calls"]] == ['{"x": 1}']
        assert turn["person"]["user"] == "ann"

    play_recorded(scene)


def test_a_prompt_that_is_only_read_is_no_turn() -> None:
    async def scene(room: Room) -> None:
        await room.anthropic().messages.create(model="bot", messages=[{"role": "user", "content": "hi"}], max_tokens=0)
        assert await room.turns() == []

    play_recorded(scene)


def test_an_answer_that_was_begun_is_kept_whole() -> None:
    async def scene(room: Room) -> None:
        room.says(" is it")
        begun: Any = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "that"}]
        await room.anthropic().messages.create(model="bot", messages=begun, max_tokens=400)
        (turn,) = await room.turns()
        assert turn["answer"] == {"role": "assistant", "content": "that is it"}

    play_recorded(scene)


def test_what_is_redacted_is_kept_nowhere() -> None:
    async def scene(room: Room) -> None:
        await room.deploy(redact=["email", "code [0-9]+"])
        asked: Any = [{"role": "user", "content": "I am ann@example.org"}]
        await room.ask("your code 4711 is sent", messages=asked)
        await room.ask("nothing", messages=[{"role": "user", "content": "hi"}])
        turn, clean = await room.turns()
        assert turn["messages"] == [{"role": "user", "content": "I am [email]"}]
        assert turn["answer"]["content"] == "your [redacted] is sent"
        assert (turn["prompt"], turn["tokens"], turn["logprobs"]) == ([], [], [])
        assert clean["prompt"]
        assert clean["tokens"]
        refused = await room.loop("PUT", "/deployments/bot", 400, json={"target": "fake", "redact": ["("]})
        assert "redact" in refused["detail"]

    play_recorded(scene)


def test_a_stream_whose_reader_leaves_is_an_abandoned_turn() -> None:
    async def scene(room: Room) -> None:
        room.says("a long answer " * 200)
        recorder = room.site.services.recorder
        said: list[str] = []
        coming: asyncio.Queue[Any] = asyncio.Queue()
        coming.put_nowait({"type": "http.request", "body": BODY})

        async def send(message: Any) -> None:
            said.append(message["type"])
            if len(said) == 40:
                coming.put_nowait({"type": "http.disconnect"})
                await asyncio.Event().wait()  # nobody reads on

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"x-api-key", room.key.encode())],
            "asgi": {"version": "3.0", "spec_version": "2.0"},
        }
        await room.site.app(scope, coming.get, send)
        assert len(recorder.pending) == 1
        (turn,) = await room.turns()
        assert turn["finish_reason"] == "abandoned"
        assert turn["answer"]["content"]
        assert ("a long answer " * 200).startswith(turn["answer"]["content"])
        assert 0 < len(turn["tokens"]) == len(turn["logprobs"]) < 2000

    play_recorded(scene)

"""Turns of recording deployments, by the packages that people ask with: what is kept of which answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.http.recorded import ASKING, Room, play_recorded
from tests.http.scripted import CHAT, TOOLS

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

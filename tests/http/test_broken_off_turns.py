"""Answers that broke off: kept as far as they came, with a fate that nothing is learned from; what redaction hides."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.http.recorded import ASKING, Room, play_recorded
from tests.http.scripted import CHAT, TOOLS

FORCED: dict[str, Any] = {"tools": TOOLS[CHAT], "tool_choice": "required"}
LONG_CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "' + "a long argument " * 200


async def leave_behind(room: Room, said: str, n_chunks: int, **fields: Any) -> None:
    """A stream of the deployment whose reader goes after some chunks."""
    room.says(said)
    body = json.dumps({"model": "bot", "messages": ASKING, "max_tokens": 4000, "stream": True} | fields).encode()
    sent: list[str] = []
    coming: asyncio.Queue[Any] = asyncio.Queue()
    coming.put_nowait({"type": "http.request", "body": body})

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if len(sent) == n_chunks:
            coming.put_nowait({"type": "http.disconnect"})
            await asyncio.Event().wait()  # nobody reads on

    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "query_string": b"",
        "headers": [(b"x-api-key", room.key.encode())],
        "asgi": {"version": "3.0", "spec_version": "2.0"},
    }
    await room.site.app(scope, coming.get, send)


async def is_never_learned_from(room: Room, turn_id: str) -> bool:
    """Whether a thumb up leaves it where it is, and a candidate is told to leave it out."""
    await room.loop("POST", "/feedback", json={"target_id": turn_id, "metric": "thumb", "value": True})
    told = await room.loop("POST", "/deployments/bot/used", json={"candidate": "c", "turns": [turn_id]})
    fate = (await room.loop("GET", f"/turns/{turn_id}"))["fate"]
    return (fate, told["withdrawn"]) == ("unfinished", [turn_id])


def test_an_answer_whose_reader_left_is_never_learned_from() -> None:
    async def scene(room: Room) -> None:
        await leave_behind(room, "a long answer " * 200, 40)
        (turn,) = await room.turns(fate="unfinished")
        assert turn["finish_reason"] == "abandoned"
        assert turn["answer"]["content"]
        assert await is_never_learned_from(room, turn["id"])

    play_recorded(scene)


def test_a_forced_call_that_has_not_ended_is_no_call() -> None:
    async def scene(room: Room) -> None:
        await leave_behind(room, LONG_CALL, 40, **FORCED)
        (turn,) = await room.turns()
        assert (turn["finish_reason"], turn["fate"]) == ("abandoned", "unfinished")
        assert "tool_calls" not in turn["answer"]
        assert await is_never_learned_from(room, turn["id"])

    play_recorded(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_that_was_cut_at_the_length_is_never_learned_from(stream: bool) -> None:
    async def scene(room: Room) -> None:
        asked = FORCED | {"max_tokens": 60}
        answer = (await room.streamed(LONG_CALL, **asked))[0] if stream else await room.ask(LONG_CALL, **asked)
        (turn,) = await room.turns()
        assert (turn["id"], turn["finish_reason"], turn["fate"]) == (answer.id, "length", "unfinished")
        assert "tool_calls" not in turn["answer"]
        assert await is_never_learned_from(room, answer.id)

    play_recorded(scene)


def test_a_plain_answer_that_was_cut_at_the_length_is_one() -> None:
    async def scene(room: Room) -> None:
        await room.ask("a long answer " * 20, max_tokens=20)
        (turn,) = await room.turns()
        assert (turn["finish_reason"], turn["fate"]) == ("length", "waiting")

    play_recorded(scene)


def test_tokens_hold_nothing_of_a_cut_call_that_was_to_be_redacted() -> None:
    async def scene(room: Room) -> None:
        await room.deploy(redact=["email"])
        said = '<tool_call>\n{"name": "f", "arguments": {"x": "ann@example.org and ' + "on " * 200
        n_max = len(
            room.script.text.tokenizer.encode('<tool_call>\n{"name": "f", "arguments": {"x": "ann@example.org and')
        )
        await room.ask(said, max_tokens=n_max, **FORCED)
        await leave_behind(room, said, 60, **FORCED)
        cut, left = await room.turns()
        for turn in (cut, left):
            assert "ann@" not in room.script.text.tokenizer.decode(turn["tokens"])
            assert (turn["tokens"], turn["logprobs"]) == ([], [])
            assert turn["prompt"]

    play_recorded(scene)


def test_tokens_hold_nothing_behind_a_stop_string_that_was_to_be_redacted() -> None:
    async def scene(room: Room) -> None:
        await room.deploy(redact=["email"])
        await room.ask("write to ann@example.org", stop=["ann@example.org"])
        (turn,) = await room.turns()
        assert turn["answer"]["content"] == "write to "
        assert turn["tokens"] == []

    play_recorded(scene)

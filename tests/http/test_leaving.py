"""Clients that wait and clients that leave, on every route that generates: streams are kept alive, work is ended."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from loreloop.engine.fake import FakeEngine
from loreloop.http import sse
from loreloop.protocol.training import length_of
from tests.http.site import Site, play

LONG = {"model": "fake", "seed": 1}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "11 12", "max_tokens": 4000},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "11"}], "max_tokens": 4000},
    "/v1/responses": {"input": "11", "max_output_tokens": 4000},
    "/anthropic/api/v1/messages": {"messages": [{"role": "user", "content": "11"}], "max_tokens": 4000},
}
AGENT = ROUTES["/v1/chat/completions"] | {"agent_loop": {}}
ASKED = [*ROUTES.items(), ("/v1/completions", ROUTES["/v1/completions"] | {"n": 3}), ("/v1/chat/completions", AGENT)]
TOKEN_SECONDS = 0.02


class Line:
    """A client's end of one request; `body` grows while it listens, `hang_up` leaves."""

    def __init__(self, site: Site, path: str, body: dict[str, Any]) -> None:
        headers = [(b"x-api-key", site.new_key("infer").encode())]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        self.said = [{"type": "http.request", "body": json.dumps(LONG | body).encode(), "more_body": False}]
        self.left, self.statuses, self.body, self.ended = asyncio.Event(), list[int](), b"", False
        self.task = asyncio.ensure_future(site.app(scope, self.receive, self.send))

    async def receive(self) -> dict[str, object]:
        if self.said:
            return self.said.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.statuses += [message["status"]] if "status" in message else []
        self.body += message.get("body", b"")
        self.ended = "body" in message and not message.get("more_body", False)

    async def until(self, happens: Callable[[], bool]) -> None:
        while not happens():
            assert not self.task.done(), self.body
            await asyncio.sleep(0.005)

    async def hang_up(self) -> float:
        """Seconds until nothing works for it any more."""
        self.left.set()
        begun = time.monotonic()
        await asyncio.wait_for(self.task, 10)
        return time.monotonic() - begun


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ASKED)
def test_a_client_that_leaves_ends_its_work_within_a_step(path: str, body: dict[str, Any], stream: bool) -> None:
    async def scene(site: Site) -> None:
        await site.start_engine(token_seconds=TOKEN_SECONDS)
        dispatcher = site.services.dispatcher
        line = Line(site, path, body | {"stream": stream})
        await line.until(lambda: bool(dispatcher.tickets))
        await asyncio.sleep(5 * TOKEN_SECONDS)
        assert await line.hang_up() < TOKEN_SECONDS
        assert (dispatcher.tickets, dispatcher.n_waiting_samples) == ({}, 0)
        assert line.statuses == ([200] if stream else [])

    play(scene, engine=False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ROUTES.items())
def test_who_asks_for_more_than_the_window_and_leaves_frees_the_engine(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    """Answers are cut at the window, and one of them would still take a minute."""

    async def scene(site: Site) -> None:
        engine = FakeEngine(token_seconds=TOKEN_SECONDS)
        await site.start_engine(engine=engine)
        dispatcher, line = site.services.dispatcher, Line(site, path, body | {"stream": stream} | huge(body))
        await line.until(lambda: engine.sampling)
        (ticket,) = dispatcher.tickets.values()
        assert length_of(ticket.op.prompt) + ticket.op.params.max_tokens == engine.info.context_window
        await line.hang_up()
        async with asyncio.timeout(1):
            while engine.sampling:
                await asyncio.sleep(0.005)

    play(scene, engine=False)


def huge(body: dict[str, Any]) -> dict[str, int]:
    return {name: 1_000_000_000 for name in body if name.startswith("max_")}


def test_who_leaves_before_an_answer_is_counted_as_such() -> None:
    async def scene(site: Site) -> None:
        await site.start_engine(token_seconds=TOKEN_SECONDS)
        line = Line(site, "/v1/completions", ROUTES["/v1/completions"])
        await line.until(lambda: bool(site.services.dispatcher.tickets))
        await line.hang_up()
        assert site.services.requests.counts["completions", 499] == 1

    play(scene, engine=False)


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_a_silent_stream_is_kept_alive(path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)

    async def scene(site: Site) -> None:
        await site.start_engine(token_seconds=0.2)
        few = {name: 3 if name.startswith("max_") else value for name, value in body.items()}
        line = Line(site, path, few | {"stream": True})
        await asyncio.wait_for(line.task, 10)
        parts = line.body.split(b"\n\n")  # comments stand between events, never inside one
        assert parts.count(sse.KEEP_ALIVE.strip()) >= 3
        events = [json.loads(part.split(b"data: ")[1]) for part in parts if b"data: {" in part]
        assert events
        assert not any("error" in event and event["error"] for event in events)

    play(scene, engine=False)


# What Claude Code 2.1.197 asks for `claude -p hi --system-prompt x --tools ""`, its longer texts cut short.
CLAUDE_CODE = {
    "model": "fake",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nToday's date is 2026-11-29.\n</system-reminder>\n\n"},
                {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
            ],
        }
    ],
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.0df; cc_entrypoint=sdk-cli;"},
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
    ],
    "tools": [],
    "metadata": {"user_id": '{"device_id":"0","account_uuid":"","session_id":"0"}'},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
}


def test_an_agent_that_asks_for_32000_tokens_is_told_the_end_of_a_model_that_finds_none() -> None:
    """The stream ends with the model's window, in the events that a client waits for."""

    async def scene(site: Site) -> None:
        url = "http://site/anthropic/api/v1/messages?beta=true"
        answer = await site.client.post(url, json=CLAUDE_CODE, headers={"anthropic-version": "2023-06-01"})
        parts = [part.split("data: ")[1] for part in answer.text.split("\n\n") if "data: " in part]
        events = [event for event in map(json.loads, parts) if event["type"] != "ping"]
        kinds = [event["type"] for event in events]
        assert kinds[0] == "message_start"
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert events[-2]["delta"]["stop_reason"] == "max_tokens"
        usage = events[-2]["usage"]
        n_prompt = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
        assert n_prompt + usage["output_tokens"] == FakeEngine().info.context_window

    play(scene)

"""Requests made to hurt by their size: refused by name, while streams and the health check of others go on."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from loreloop.cli.server import RunningServer
from tests.processes import children_called

TEN_MB = "word " * 2_000_000
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
COMPLETIONS, MESSAGES = "/v1/completions", "/anthropic/api/v1/messages"
USER = {"role": "user", "content": "hi"}
LONGEST_GAP_SECONDS, GROWTH_MIB = 0.5, 300


def turn_of_chat(result: str, arguments: str = "{}") -> dict[str, Any]:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    answer = {"role": "tool", "tool_call_id": "a", "content": result}
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}, answer], "max_tokens": 3}


def turn_of_responses(result: str, arguments: str = "{}") -> dict[str, Any]:
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": arguments}
    answer = {"type": "function_call_output", "call_id": "a", "output": result}
    return {"input": [USER, call, answer], "max_output_tokens": 16}


def turn_of_messages(result: str, argument: str = "") -> dict[str, Any]:
    call = {"type": "tool_use", "id": "a", "name": "f", "input": {"x": argument}}
    answer = {"type": "tool_result", "tool_use_id": "a", "content": result}
    turns = [USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": [answer]}]
    return {"messages": turns, "max_tokens": 3}


def tools(n: int) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": f"f{number}"}} for number in range(n)]


ARGUMENT = json.dumps({"x": TEN_MB})
TOO_LARGE: dict[str, tuple[str, dict[str, Any], str]] = {
    "prompt": (COMPLETIONS, {"prompt": TEN_MB}, "context window"),
    "prompts": (COMPLETIONS, {"prompt": [TEN_MB[:70_000]] * 128}, "context window"),
    "ids": (COMPLETIONS, {"prompt": [5] * 3_000_000}, "commas"),
    "stops": (COMPLETIONS, {"prompt": "a", "stop": [f"zz{number}" for number in range(500_000)]}, "at most 64"),
    "a stop": (COMPLETIONS, {"prompt": "a", "stop": TEN_MB}, "at most 1024"),
    "model": (COMPLETIONS, {"prompt": "a", "model": TEN_MB}, "not served"),
    "chat": (CHAT, {"messages": [{"role": "user", "content": TEN_MB}]}, "context window"),
    "chat result": (CHAT, turn_of_chat(TEN_MB), "context window"),
    "chat argument": (CHAT, turn_of_chat("x", ARGUMENT), "context window"),
    "turns": (CHAT, {"messages": [USER] * 100_000}, "messages"),
    "tools": (CHAT, {"messages": [USER], "tools": tools(20_000)}, "tools"),
    "a tool": (
        CHAT,
        {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f", "description": TEN_MB}}]},
        "524288 together",
    ),
    "response": (RESPONSES, {"input": TEN_MB}, "context window"),
    "response result": (RESPONSES, turn_of_responses(TEN_MB), "context window"),
    "response argument": (RESPONSES, turn_of_responses("x", ARGUMENT), "context window"),
    "items": (RESPONSES, {"input": [USER] * 100_000}, "input"),
    "message": (MESSAGES, {"messages": [{"role": "user", "content": TEN_MB}], "max_tokens": 3}, "context window"),
    "message result": (MESSAGES, turn_of_messages(TEN_MB), "context window"),
    "message argument": (MESSAGES, turn_of_messages("x", TEN_MB), "context window"),
    "count": (f"{MESSAGES}/count_tokens", {"messages": [{"role": "user", "content": TEN_MB}]}, "context window"),
}


class Clock:
    """Seconds that pass for a few threads which wait for one another: without those in which one of them was ready to
    run and the machine ran something else, so that a busy machine makes no gap of ours longer."""

    def __init__(self, *pids: int) -> None:
        own = f"/proc/{os.getpid()}/task/{threading.get_native_id()}"
        self.files = [Path(task, "schedstat") for task in (own, *(f"/proc/{pid}/task/{pid}" for pid in pids))]

    def now(self) -> float:
        kept_waiting = sum(int(file.read_text().split()[1]) for file in self.files)
        return time.monotonic() - kept_waiting / 1e9


class Watch:
    """The longest waits of a health check and between a stream's tokens, and the server's memory, meanwhile."""

    def __init__(self, server: RunningServer, client: httpx.Client) -> None:
        self.client, self.over = client, threading.Event()
        self.gaps = {"health": 0.0, "stream": 0.0}
        (self.process,), (self.engine,) = (
            children_called(server.pid, name) for name in ("http_process", "engine_process")
        )
        self.before = self.most = self.process.memory_info().rss
        self.threads = [threading.Thread(target=self._checks), threading.Thread(target=self._reads)]

    def _checks(self) -> None:
        clock = Clock(self.process.pid)
        while not self.over.is_set():
            begun = clock.now()
            self.client.get("/healthz").raise_for_status()
            self.gaps["health"] = max(self.gaps["health"], clock.now() - begun)
            self.most = max(self.most, self.process.memory_info().rss)
            time.sleep(0.02)

    def _reads(self) -> None:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 8000, "stream": True, "logit_bias": {"2": -100}}
        clock = Clock(self.process.pid, self.engine.pid)
        while not self.over.is_set():
            with self.client.stream("POST", COMPLETIONS, json=body) as answer:
                last = 0.0
                for _ in answer.iter_lines():
                    if last:
                        self.gaps["stream"] = max(self.gaps["stream"], clock.now() - last)
                    last = clock.now()
                    if self.over.is_set():
                        return


@contextmanager
def watched(server: RunningServer, client: httpx.Client) -> Iterator[Watch]:
    watch = Watch(server, client)
    for thread in watch.threads:
        thread.start()
    time.sleep(0.3)
    try:
        yield watch
        time.sleep(0.2)
    finally:
        watch.over.set()
        for thread in watch.threads:
            thread.join()


@pytest.mark.timed
@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large_is_refused_while_others_go_on(server: RunningServer, name: str) -> None:
    route, fields, words = TOO_LARGE[name]
    body = json.dumps({"model": "tiny"} | fields).encode()
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client, watched(server, client) as watch:
        answer = client.post(route, content=body)
    assert answer.status_code in (400, 404, 413), answer.text[:500]
    assert words in answer.json()["error"]["message"]
    assert len(answer.content) < 10_000
    assert max(watch.gaps.values()) < LONGEST_GAP_SECONDS, watch.gaps
    assert watch.most - watch.before < GROWTH_MIB << 20

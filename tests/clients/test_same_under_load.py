"""With --deterministic an answer depends on its seed alone: streamed or whole, alone or in a crowd, on every route."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from loreloop.cli.server import RunningServer

CHAT = [{"role": "user", "content": "the quick brown fox"}]
SAMPLED = {"model": "tiny", "temperature": 1.0, "top_p": 0.95, "seed": 5}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "the quick brown", "max_tokens": 40},
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 40},
    "/v1/responses": {"input": "the quick brown fox", "max_output_tokens": 40},
    "/anthropic/api/v1/messages": {"messages": CHAT, "max_tokens": 40},
}
WHOLE: dict[str, Callable[[Any], str]] = {
    "/v1/completions": lambda said: said["choices"][0]["text"],
    "/v1/chat/completions": lambda said: said["choices"][0]["message"]["content"],
    "/v1/responses": lambda said: "".join(p["text"] for item in said["output"] for p in item["content"]),
    "/anthropic/api/v1/messages": lambda said: "".join(block["text"] for block in said["content"]),
}
PIECE: dict[str, Callable[[Any], str]] = {
    "/v1/completions": lambda event: event["choices"][0]["text"],
    "/v1/chat/completions": lambda event: event["choices"][0]["delta"].get("content", ""),
    "/v1/responses": lambda event: event["delta"] if event["type"] == "response.output_text.delta" else "",
    "/anthropic/api/v1/messages": lambda event: (
        event["delta"]["text"] if event["type"] == "content_block_delta" else ""
    ),
}


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=120) as made:
        yield made


def whole(client: httpx.Client, route: str, **fields: object) -> str:
    answer = client.post(route, json=SAMPLED | BODIES[route] | fields)
    assert answer.status_code == 200, answer.text
    return WHOLE[route](answer.json())


def streamed(client: httpx.Client, route: str, **fields: object) -> str:
    text = ""
    with client.stream("POST", route, json=SAMPLED | BODIES[route] | {"stream": True} | fields) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += PIECE[route](json.loads(line.removeprefix("data: ")))
    return text


@contextmanager
def crowd(client: httpx.Client, n: int) -> Iterator[list[int]]:
    """Others who ask for other things all the while, now and then leaving early; yields how much they were answered."""
    over, answered = threading.Event(), [0] * n

    def stranger(number: int) -> None:
        rng = random.Random(number)
        while not over.is_set():
            words = [str(rng.randrange(1000)) for _ in range(rng.randrange(1, 40))]
            body = {"model": "tiny", "prompt": " ".join(words), "max_tokens": rng.randrange(1, 30), "stream": True}
            with client.stream("POST", "/v1/completions", json=body | {"temperature": rng.choice([0, 1])}) as response:
                for _ in response.iter_lines():
                    answered[number] += 1
                    if rng.random() < 0.02:
                        break

    strangers = [threading.Thread(target=stranger, args=(number,)) for number in range(n)]
    for thread in strangers:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        for thread in strangers:
            thread.join()


@pytest.mark.parametrize("route", BODIES)
def test_streamed_and_whole_are_equal_alone_and_in_a_crowd(client: httpx.Client, route: str) -> None:
    alone = {seed: whole(client, route, seed=seed) for seed in range(4)}
    assert len(set(alone.values())) == 4
    assert {seed: streamed(client, route, seed=seed) for seed in alone} == alone
    with crowd(client, 6) as answered:
        while min(answered) == 0:
            time.sleep(0.01)
        for ask in (whole, streamed):
            before = sum(answered)
            assert {seed: ask(client, route, seed=seed) for seed in alone} == alone
            assert sum(answered) > before

"""Recording on a real server: a kill at any moment leaves whole turns, and only what was not yet written is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from loreloop.cli.server import RunningServer, running_server
from tests.sdk.test_recovery import process


@pytest.fixture
def own_server(tmp_path: Path, tiny_folder: Path) -> Iterator[RunningServer]:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_folder)
    with running_server(str(tmp_path), ["--model", "tiny", "--precision", "fp32", "--threads", "1"]) as running:
        yield running


def loop(server: RunningServer, method: str, path: str, **more: Any) -> Any:
    headers = {"authorization": f"Bearer {server.key}"}
    answer = httpx.request(method, f"{server.url}/loop/v1{path}", headers=headers, timeout=60, **more)
    answer.raise_for_status()
    return answer.json()


def feed(server: RunningServer) -> dict[str, dict[str, Any]]:
    return {turn["id"]: turn for turn in loop(server, "GET", "/deployments/bot/turns?limit=1000")["turns"]}


def test_a_killed_server_leaves_whole_turns(own_server: RunningServer) -> None:
    loop(own_server, "PUT", "/deployments/bot", json={"target": "tiny", "record": True})
    client = openai.OpenAI(base_url=f"{own_server.url}/v1", api_key=own_server.key, max_retries=8)
    heard: dict[str, str | None] = {}
    over = threading.Event()

    def talk(number: int) -> None:
        for n in range(10_000):
            if over.is_set():
                return
            asked: Any = [{"role": "user", "content": f"{number} says {n}"}]
            try:
                answer = client.chat.completions.create(model="bot", messages=asked, max_tokens=3, user=str(number))
            except openai.APIError:
                continue  # of an answer that was cut off nothing was heard
            heard[answer.id] = answer.choices[0].message.content

    talkers = [threading.Thread(target=talk, args=(number,)) for number in range(3)]
    for talker in talkers:
        talker.start()
    written: set[str] = set()
    for _ in range(3):
        n_before = len(written)
        deadline = time.monotonic() + 60
        while len(written) < n_before + 5:
            assert time.monotonic() < deadline, "turns are written within a moment"
            time.sleep(0.1)
            written |= feed(own_server).keys()
        process(own_server, "http_process").kill()  # SIGKILL, while others are being answered and written
        client.models.list()
    over.set()
    for talker in talkers:
        talker.join(60)
    last = [*heard][-1]
    deadline = time.monotonic() + 30
    while last not in (kept := feed(own_server)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert written <= kept.keys(), "what was once read from the feed is never lost"
    assert len({turn["number"] for turn in kept.values()}) == len(kept)
    for turn_id, turn in kept.items():
        assert len(turn["tokens"]) == len(turn["logprobs"]) > 0
        assert turn["prompt"]
        assert turn["messages"]
        assert heard.get(turn_id, turn["answer"]["content"]) == turn["answer"]["content"]
    assert {turn["fate"] for turn in kept.values()} == {"waiting"}

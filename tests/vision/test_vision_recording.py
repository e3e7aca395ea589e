"""Images of recorded turns: kept as data, whatever they were named by, and read back as they were."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx
import openai

from loreloop.cli.server import RunningServer
from tests.vision.test_vision_chat import CAT, said, seen, url


def test_images_are_kept_as_data(seeing: RunningServer, web: str) -> None:
    key = {"authorization": f"Bearer {seeing.key}"}
    place = f"{seeing.url}/loop/v1/deployments/eyes-bot"
    httpx.put(place, json={"target": "eyes", "record": True}, headers=key, timeout=60).raise_for_status()
    client = openai.OpenAI(base_url=f"{seeing.url}/v1", api_key=seeing.key, max_retries=0)
    content: Any = [said("look"), seen(f"{web}/good"), seen(url())]
    answer = client.chat.completions.create(
        model="eyes-bot", messages=[{"role": "user", "content": content}], max_tokens=4
    )
    deadline = time.monotonic() + 20
    while not (turns := httpx.get(f"{place}/turns", headers=key).json()["turns"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (turn,) = turns
    text, fetched, sent = turn["messages"][0]["content"]
    assert (turn["id"], text) == (answer.id, said("look"))
    assert sent["image_url"]["url"] == url(CAT)
    head, _, data = fetched["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(data) == httpx.get(f"{web}/good").content
    assert turn["prompt"] == []  # an image's places have no ids
    assert len(turn["tokens"]) == len(turn["logprobs"]) == 4

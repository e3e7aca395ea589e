"""A deployment that sees: episodes with images and tools are recorded, corrected, learned from, and answered anew."""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from loreloop.cli.server import RunningServer, running_server
from loreloop.learn.loop import assembly
from loreloop.learn.loop.config import Loaded, config_of
from loreloop.learn.loop.state import LoopFolder
from tests.tiny import make_tokenizer
from tests.tiny_vision import IMAGE_TOKENS, make_tiny_vision_model, picture
from tests.vision.test_vision_chat import said, seen, url

pytestmark = pytest.mark.filterwarnings("ignore")

# Tools before all messages, calls and results as Hermes writes them.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>"
    "{% for tool in tools %}{{ tool['function']['name'] }} {% endfor %}</tools>"
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% elif message['content'] %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n{{ {'name': call.function.name, "
    "'arguments': call.function.arguments} | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS: Any = [{"type": "function", "function": {"name": "zoom", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "call-1", "type": "function", "function": {"name": "zoom", "arguments": "{}"}}
WORDS = ("the fox", "the dog", "the quick", "over it")


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    make_tiny_vision_model(data / "models" / "eyes", "qwen3_vl")
    make_tokenizer(data / "models" / "eyes", 512, IMAGE_TOKENS, TEMPLATE)
    with running_server(str(data), ["--model", "eyes", "--precision", "fp32", "--threads", "1"]) as running:
        yield running


def episode(n: int) -> dict[str, Any]:
    """Every second one is an agent's, which has called a tool and shows what came back."""
    asked: list[Any] = [{"role": "user", "content": [said("what is"), seen(url(picture(64 + 32 * n, 64, seed=n)))]}]
    if n % 2 == 0:
        return {"messages": asked}
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    return {"messages": [*asked, called, {"role": "tool", "tool_call_id": "call-1", "content": "12"}], "tools": TOOLS}


def talk(server: RunningServer, client: openai.OpenAI, web: httpx.Client) -> None:
    web.put("/loop/v1/deployments/eyes-bot", json={"target": "eyes", "record": True}).raise_for_status()
    for n, word in enumerate(WORDS):
        answer = client.chat.completions.create(model="eyes-bot", max_tokens=4, user="ann", **episode(n))
        body = {"target_id": answer.id, "metric": "demonstration", "value": word, "who": "ann"}
        web.post("/loop/v1/feedback", json=body).raise_for_status()
    deadline = time.monotonic() + 20
    while len(web.get("/loop/v1/deployments/eyes-bot/turns").json()["turns"]) < len(WORDS):
        assert time.monotonic() < deadline
        time.sleep(0.1)


async def to_canary(server: RunningServer, folder: Path, plain: dict[str, Any]) -> LoopFolder:
    loaded = Loaded(config_of(plain), folder, folder / "loop.state")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        async with assembly.opened(loaded) as course:
            for _ in range(4):
                assert await course.step(), course.folder.why()
    return LoopFolder(loaded.folder)


def test_images_and_tools_of_episodes_train(
    eyes: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORELOOP_API_KEY", eyes.key)
    client = openai.OpenAI(base_url=f"{eyes.url}/v1", api_key=eyes.key, max_retries=0)
    lines: list[str] = []
    train = assembly.trained

    async def noted(shop, folder: Path, *more):
        lines.extend((folder / "sft.jsonl").read_text().splitlines())
        return await train(shop, folder, *more)

    monkeypatch.setattr(assembly, "trained", noted)
    with httpx.Client(base_url=eyes.url, headers={"authorization": f"Bearer {eyes.key}"}, timeout=60) as web:
        talk(eyes, client, web)
        plain = {
            "deployment": "eyes-bot",
            "url": eyes.url,
            "triggers": {"feedback": 4},
            "training": {"methods": ["sft"], "rank": 8, "learning_rate": 0.01, "epochs": 30, "batch_size": 4},
            "gate": {"length_most": 100, "length_least": 0, "repetition_most": 1.0},
        }
        folder = asyncio.run(to_canary(eyes, tmp_path, plain))
        state = folder.load()
        assert state is not None
        assert state.stage == "canary", folder.decisions()
        told = [json.loads(line) for line in lines]
        assert [line["messages"][0]["content"][1]["type"] for line in told] == ["image_url"] * 4
        with_tools = [line for line in told if "tools" in line]
        assert len(with_tools) == 2
        assert with_tools[0]["messages"][1]["tool_calls"][0]["function"]["name"] == "zoom"
        # Everybody meets it, and it has learned what it was told of these pictures.
        web.put("/loop/v1/deployments/eyes-bot", json={"target": state.candidate.target}).raise_for_status()
        said_now = [
            client.chat.completions.create(model="eyes-bot", max_tokens=8, temperature=0, **episode(n))
            for n in range(4)
        ]
    assert [each.choices[0].message.content for each in said_now] == [*WORDS]

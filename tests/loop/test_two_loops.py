"""Two loops on one server at the same time: each learns from its own deployment and moves that alone."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import openai
import pytest

from loreloop.cli.server import RunningServer
from loreloop.learn.loop import assembly
from loreloop.learn.loop.config import Loaded, config_of
from loreloop.learn.loop.state import LoopFolder

# The SDK leaves its own background tasks to the garbage collector, and complains of its next version.
pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = ("left", "right")


def talk(server: RunningServer, web: httpx.Client, name: str) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
    web.put(f"/loop/v1/deployments/{name}", json={"target": "tiny", "record": True}).raise_for_status()
    for n in range(4):
        asked = [{"role": "user", "content": f"{name} asks {n}"}]
        answer = client.chat.completions.create(model=name, messages=asked, max_tokens=4, user="ann")  # type: ignore[arg-type]
        body = {"target_id": answer.id, "metric": "demonstration", "value": f"{name} {n}", "who": "ann"}
        web.post("/loop/v1/feedback", json=body).raise_for_status()
    deadline = time.monotonic() + 20
    while len(web.get(f"/loop/v1/deployments/{name}/turns").json()["turns"]) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def loaded(server: RunningServer, folder: Path, name: str) -> Loaded:
    plain = {
        "deployment": name,
        "url": server.url,
        "triggers": {"feedback": 4},
        "training": {"methods": ["sft"], "rank": 4, "learning_rate": 0.01, "epochs": 2, "general": 0},
        "gate": {"kl_most": 100, "length_most": 100, "length_least": 0, "repetition_most": 1.0},
    }
    return Loaded(config_of(plain), folder, folder / f"{name}.state")


async def to_canary(told: Loaded) -> None:
    async with assembly.opened(told) as course:
        for _ in range(4):
            assert await course.step(), course.folder.why()


def test_two_loops_run_beside_one_another(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORELOOP_API_KEY", server.key)
    lines: dict[str, str] = {}
    train = assembly.trained

    async def noted(shop, folder: Path, *more):
        lines[folder.parent.parent.name] = (folder / "sft.jsonl").read_text()
        return await train(shop, folder, *more)

    monkeypatch.setattr(assembly, "trained", noted)
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {server.key}"}, timeout=60) as web:
        for name in NAMES:
            talk(server, web, name)

        async def both() -> None:
            await asyncio.gather(*(to_canary(loaded(server, tmp_path, name)) for name in NAMES))

        asyncio.run(both())
        states = {name: LoopFolder(tmp_path / f"{name}.state").load() for name in NAMES}
        for name, other in (NAMES, NAMES[::-1]):
            state, now = states[name], web.get(f"/loop/v1/deployments/{name}").json()
            assert state is not None
            assert state.candidate is not None
            assert (state.stage, now["canary"]) == ("canary", state.candidate.target)
            assert f"{name} asks 3" in lines[f"{name}.state"]
            assert other not in lines[f"{name}.state"]
    left, right = states["left"], states["right"]
    assert left is not None
    assert right is not None
    assert left.candidate != right.candidate

"""A cycle over what a real server has recorded: asked through the `openai` client, judged over the real routes."""

from __future__ import annotations

import asyncio
import json
import re
import warnings
from pathlib import Path

import httpx
import openai
import pytest

from loreloop.cli.server import RunningServer
from loreloop.learn.loop import assembly
from loreloop.learn.loop.config import Loaded, config_of
from loreloop.learn.loop.door import Door
from loreloop.learn.loop.reward.keeping import versions
from loreloop.learn.loop.state import LoopFolder
from loreloop.protocol.errors import Conflict, WrongSettings
from tests.loop.test_whole_cycle import loaded

NAME = "assistant"


@pytest.fixture
def http(server: RunningServer):
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        client.delete(f"/loop/v1/deployments/{NAME}")
        body = {"target": "tiny", "record": True}
        client.put(f"/loop/v1/deployments/{NAME}", json=body).raise_for_status()
        yield client


def asked(server: RunningServer, user: str, text: str, **headers: str) -> str:
    """The id of one answer to one person."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
        reply = client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": text}],
            max_tokens=4,
            user=user,
            extra_headers=headers,
        )
    return reply.id


def say(http: httpx.Client, target: str, metric: str, value: object, **more: object) -> None:
    body = {"target_id": target, "metric": metric, "value": value, "who": "somebody"} | more
    http.post("/loop/v1/feedback", json=body).raise_for_status()


async def to_candidate(told: Loaded) -> dict[str, str]:
    """One cycle as far as its candidate; the lines that it learned from, by method."""
    folder, lines = LoopFolder(told.folder), dict[str, str]()
    async with assembly.opened(told) as course:
        course.asked = True
        while (state := folder.load()) is None or state.candidate is None:
            await course.step()
            lines |= {file.stem: file.read_text() for file in folder.cycle(1).glob("*.jsonl")}
    return lines


def test_what_must_not_be_learned_is_in_no_line(server: RunningServer, http, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LORELOOP_API_KEY", server.key)
    for n in range(3):
        say(http, asked(server, "ann", f"what is {n}?"), "demonstration", f"it is {n}")
    say(http, asked(server, "zed", "the deleted one asks"), "demonstration", "never this")
    http.delete("/loop/v1/persons/zed").raise_for_status()
    say(http, asked(server, "bob", "the silent one asks", **{"x-consent": "no"}), "demonstration", "never this")
    say(http, asked(server, "bob", "the side turn asks", **{"x-side-turn": "1"}), "demonstration", "never this")
    say(http, asked(server, "bob", "a golden prompt"), "demonstration", "never this")
    marked = asked(server, "bob", "a marked prompt")
    say(http, marked, "demonstration", "never this", tags={"golden": "1"})
    (tmp_path / "golden.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a golden prompt"}], "answer": "never this"}) + "\n"
    )
    told = loaded(server, tmp_path, reward={"golden": "golden.jsonl"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = asyncio.run(to_candidate(told))
    assert {*lines} == {"sft", "rehearsed"}
    assert lines["sft"].count("\n") == 3
    assert "never this" not in str(lines)
    counts = http.get(f"/loop/v1/deployments/{NAME}/turns/counts").json()
    assert counts["fates"]["used"] == 3


def test_one_persons_words_come_back_to_that_person_alone(
    server: RunningServer, http, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("LORELOOP_API_KEY", server.key)
    for n in range(3):
        say(http, asked(server, "zoe", f"what is {n}?"), "demonstration", f"it is {n}")
    more = {"persons": {"corrections": 3, "epochs": 3, "right_least": 0.0}, "triggers": {"feedback": 0}}
    told = loaded(server, tmp_path, **more)

    async def go() -> None:
        async with assembly.opened(told) as course:
            assert await course.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(go())
    own = http.get(f"/loop/v1/deployments/{NAME}/persons/zoe").json()["target"]
    assert own.startswith("tinker://")
    asked(server, "zoe", "and now?")
    asked(server, "ann", "and now?")
    turns = []
    for _ in range(50):
        turns = http.get(f"/loop/v1/deployments/{NAME}/turns").json()["turns"]
        if len(turns) == 5:
            break
    arms = {(turn["person"]["user"], turn["arm"]) for turn in turns[-2:]}
    assert arms == {("zoe", "person"), ("ann", "main")}


def opens(told: Loaded) -> None:
    async def go() -> None:
        async with assembly.opened(told):
            pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(go())


def test_a_change_is_made_to_the_version_that_was_looked_at_alone(server: RunningServer, http) -> None:
    door = Door.to(server.url, server.key, NAME)
    seen = door.deployment().version
    door.deploy("tiny", "tiny", 5.0, expected=seen)
    with pytest.raises(Conflict, match="meant for version"):
        door.deploy("tiny", "tiny", 50.0, expected=seen)
    assert door.deployment().canary_percent == 5.0
    door.deploy("tiny", "tiny", 5.0, expected=seen)  # it stands there already
    assert door.deployment().version == seen + 1
    door.http.close()


def test_a_wrong_loop_is_refused_at_its_start(server: RunningServer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LORELOOP_API_KEY", server.key)
    config = config_of({"deployment": "nobody-has-this", "url": server.url})
    with pytest.raises(Exception, match="nobody-has-this"):
        opens(Loaded(config, tmp_path, tmp_path / "state"))


def test_a_deployment_that_keeps_nothing_is_refused(server: RunningServer, http, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LORELOOP_API_KEY", server.key)
    http.put(f"/loop/v1/deployments/{NAME}", json={"target": "tiny", "record": False}).raise_for_status()
    with pytest.raises(WrongSettings, match=f"loreloop deploy set {NAME} tiny --record"):
        opens(loaded(server, tmp_path))


RUDE = """
[metrics.rude]
type = "boolean"
level = "inference"
optimize = "min"
"""


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("canary.metrics` names 'thumbs'", {"canary": {"metrics": ["thumb", "thumbs"]}}),
        ("canary.metrics` names 'comment'", {"canary": {"metrics": ["thumb", "comment"]}}),
        ("canary.metrics` names 'preference'", {"canary": {"metrics": ["preference"]}}),
        ("reward.metrics` names 'rood'", {"reward": {"kind": "linear", "metrics": {"rood": 1.0}}}),
        ("reward.metrics` names 'comment'", {"reward": {"kind": "linear", "metrics": {"comment": 1.0}}}),
    ],
)
def test_a_metric_that_measures_nothing_is_refused(
    server: RunningServer, http, tmp_path: Path, monkeypatch, field: str, settings: dict
) -> None:
    monkeypatch.setenv("LORELOOP_API_KEY", server.key)
    http.put(f"/loop/v1/deployments/{NAME}/metrics", content=RUDE.encode()).raise_for_status()
    with pytest.raises(WrongSettings, match=re.escape(field)):
        opens(loaded(server, tmp_path, **settings))


def test_metrics_that_a_deployment_declares_reach_canary_and_reward(
    server: RunningServer, http, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("LORELOOP_API_KEY", server.key)
    http.put(f"/loop/v1/deployments/{NAME}/metrics", content=RUDE.encode()).raise_for_status()
    for n in range(8):
        say(http, asked(server, "ann", f"what is {n}?"), "rude", True, who=f"person {n}")
    told = loaded(server, tmp_path, reward={"kind": "linear"}, canary={"metrics": ["thumb", "rude"]})

    async def go() -> None:
        async with assembly.opened(told) as course:
            assert course.work.metrics["rude"].optimize == "min"
            assert course.work.metrics["thumb"].optimize == "max"
            await course.listening.listen()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(go())
    (version,) = versions(told.folder / "reward" / "proxy")
    assert version.data.n_events > 2

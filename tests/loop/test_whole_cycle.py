"""One cycle from recorded turns to a promoted revision, against a real server with a tiny model."""

from __future__ import annotations

import asyncio
import time
import warnings
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from loreloop.cli.server import RunningServer
from loreloop.learn.loop import assembly, by_hand
from loreloop.learn.loop.config import Loaded, config_of
from loreloop.learn.loop.standing import tell_server
from loreloop.learn.loop.state import LoopFolder
from loreloop.protocol.episodes import Person
from tests.loop.feeds import Feeds


def loaded(server: RunningServer, folder: Path, **more) -> Loaded:
    plain = {
        "deployment": "assistant",
        "url": server.url,
        "triggers": {"feedback": 4, "poll_seconds": 0.01},
        "training": {"rank": 4, "learning_rate": 0.01, "epochs": 2, "least_examples": 2},
        "gate": {"kl_most": 100, "length_most": 100, "length_least": 0, "repetition_most": 1.0},
        "canary": {"percent": 50, "least_episodes": 5, "most_episodes": 40, "gain": 0.3},
    }
    return Loaded(config_of(plain | more), folder, folder / "loop.state")


@asynccontextmanager
async def course_of(server: RunningServer, feeds: Feeds, told: Loaded, monkeypatch):
    monkeypatch.setenv("LORELOOP_API_KEY", server.key)
    monkeypatch.setattr(assembly, "door_of", lambda _: feeds.door(server.url, server.key))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        async with assembly.opened(told) as course:
            yield course


def deploy(server: RunningServer, target: str = "tiny") -> None:
    headers = {"authorization": f"Bearer {server.key}"}
    httpx.put(
        f"{server.url}/loop/v1/deployments/assistant",
        json={"target": target, "record": True},
        headers=headers,
        timeout=60,
    ).raise_for_status()


def rollback_seconds(course, target: str) -> float:
    """How long the way back to the champion before takes. The least of several: a busy machine may hold up any one."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        assert by_hand.roll_back(course.folder, course.server) == "tiny"
        times.append(time.perf_counter() - began)
        assert course.server.deployment().target == "tiny"
        course.server.deploy(target)
    return min(times)


@pytest.mark.timed
def test_feedback_becomes_a_promoted_revision(server: RunningServer, tmp_path: Path, monkeypatch) -> None:
    deploy(server)
    feeds = Feeds()
    for n in range(6):
        turn = feeds.turn(f"what is {n}?", "it is the fox", prompt=(1, 5, 6), tokens=(7, 8), logprobs=(-1.0, -1.0))
        feeds.say(turn.id, "demonstration", f"it is {n}")
        feeds.say(turn.id, "thumb", value=False)

    async def go() -> None:
        async with course_of(server, feeds, loaded(server, tmp_path), monkeypatch) as course:
            for _ in range(4):  # idle, collecting, training, gate
                assert await course.step()
            state = LoopFolder(tmp_path / "loop.state").load()
            assert state is not None
            assert state.stage == "canary"
            now = course.server.deployment()
            assert now.target == "tiny"
            assert now.canary == state.candidate.target
            assert now.canary_percent == 50
            assert not await course.step()
            assert "5 of either" in course.folder.why()["sentence"]
            for n in range(30):
                arm = ("main", "canary")[n % 2]
                who = Person("key", f"user {n}")
                turn = feeds.turn(f"how is {n}?", "well", arm=arm, version=now.version, person=who)
                feeds.say(turn.id, "thumb", value=arm == "canary")
            assert await course.step()
            assert course.server.deployment().target == state.candidate.target
            assert course.server.deployment().canary is None
            assert rollback_seconds(course, state.candidate.target) < 0.1

    asyncio.run(go())
    folder = LoopFolder(tmp_path / "loop.state")
    assert [one.verdict for one in folder.decisions()] == ["passed", "promoted"]
    assert folder.load().champion.target == feeds.used[-1]["revision"]
    assert len(feeds.used[0]["turns"]) == 6


def test_a_learned_reward_teaches_by_fresh_answers(server: RunningServer, tmp_path: Path, monkeypatch) -> None:
    deploy(server)
    feeds = Feeds()
    for n in range(4):
        turn = feeds.turn(f"what is {n}?", "fox" if n % 2 else "the lazy dog", prompt=(1, 5), tokens=(7,))
        feeds.say(turn.id, "thumb", value=bool(n % 2), who=f"{n}")
    more = {
        "training": {"methods": ["grpo"], "rank": 4, "group_size": 4, "answer_tokens": 6, "least_examples": 2},
        "reward": {"kind": "linear"},
    }

    async def go() -> None:
        async with course_of(server, feeds, loaded(server, tmp_path, **more), monkeypatch) as course:
            for _ in range(4):
                assert await course.step()
            tell_server(course)
            told = course.server.http.get(f"{course.server.place}/standing").raise_for_status().json()
            assert told["standing"]["candidate"] == course.server.deployment().canary
            assert [one["verdict"] for one in told["standing"]["decisions"]] == ["passed"]

    asyncio.run(go())
    folder = LoopFolder(tmp_path / "loop.state")
    state = folder.load()
    assert state is not None
    assert state.stage == "canary"
    (passed,) = folder.decisions()
    assert {"reward", "reward_champion", "failed_calls"} <= passed.numbers.keys(), "the guards have looked too"
    measured = (folder.cycle(1) / "grpo" / "metrics.jsonl").read_text()
    assert "reward_mean" in measured
    assert (tmp_path / "loop.state" / "reward").is_dir()

"""The loop's reward is what loop.toml says, hears all turns and statements, and keeps golden prompts from training."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
import tinker
from tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture

from loreloop.cli.server import RunningServer
from loreloop.learn.loop.collecting import Rules, collect
from loreloop.learn.loop.config import Loaded, config_of
from loreloop.learn.loop.door import Door
from loreloop.learn.loop.reward.events import RewardVersion, Scored, prompt_key
from loreloop.learn.loop.reward.linear import LinearReward
from loreloop.learn.loop.reward.mix import LearnedReward, Mixed
from loreloop.learn.loop.reward.stream import RewardStream
from loreloop.learn.loop.reward.stream import Rules as StreamRules
from loreloop.learn.loop.rewarding import Base, Rewarding
from loreloop.learn.loop.sessions import LoopSession
from loreloop.learn.rendering import renderer_of
from loreloop.learn.rewards.graders.reading import GraderReward
from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import Unavailable
from loreloop.protocol.feedback import Direction, Metric
from tests.loop.feeds import Feeds

GRADER = {"type": "exact", "name": "right", "input": "{{ sample.output_text }}", "reference": "1"}
NO_BASE = Base(None, "tiny", None)  # type: ignore[arg-type]  # a linear reward needs none


def rewarding_of(folder: Path, deleted: frozenset[str] = frozenset(), golden: str = "", **reward) -> Rewarding:
    methods = {"methods": ["grpo"]} if reward else {}
    config = config_of({"deployment": "assistant", "reward": reward, "training": methods})
    loaded = Loaded(config, folder, folder / "loop.state")
    return Rewarding(loaded, NO_BASE, "key", lambda: deleted, lambda messages: prompt_key(messages) == golden)


@pytest.mark.parametrize(
    ("reward", "kind"),
    [
        ({}, type(None)),
        ({"kind": "linear"}, LearnedReward),
        ({"grader": GRADER}, GraderReward),
        ({"kind": "linear", "grader": GRADER}, Mixed),
        ({"kind": "linear", "mix": "mix.toml"}, Mixed),
    ],
)
def test_the_reward_is_what_the_settings_say(tmp_path: Path, reward: dict, kind: type) -> None:
    (tmp_path / "mix.toml").write_text('[[part]]\nname = "people"')
    assert isinstance(rewarding_of(tmp_path, **reward).reward, kind)


def corrected(n: int) -> Feeds:
    feeds = Feeds()
    for k in range(n):
        turn = feeds.turn(f"what is {k}?", f"it is {k}, I believe")
        feeds.say(turn.id, "demonstration", f"{k}", who=f"person{k}")
    return feeds


def test_what_is_heard_is_learned_and_golden_prompts_are_not_trained_on(tmp_path: Path) -> None:
    feeds = corrected(60)
    rewarding = rewarding_of(tmp_path, kind="linear")
    assert asyncio.run(rewarding.hear(feeds.turns, feeds.feedback)) == ""
    assert rewarding.stream is not None
    assert rewarding.stream.proxy.version.number == 1
    held_out = [turn for turn in feeds.turns if rewarding.holds(turn.messages)]
    assert held_out
    found = collect(feeds.turns, feeds.feedback, Rules(held_out=rewarding.holds))
    trained = {used.turn for each in found.used.values() for used in each}
    assert trained
    assert not trained & {turn.id for turn in held_out}
    # The next process goes on from there.
    again = rewarding_of(tmp_path, kind="linear")
    assert again.stream is not None
    assert again.stream.proxy.version == rewarding.stream.proxy.version


def test_deleted_persons_and_the_golden_file_are_not_heard(tmp_path: Path) -> None:
    feeds = corrected(20)
    for_nobody = rewarding_of(tmp_path / "a", frozenset({"key\nann"}), kind="linear")
    asyncio.run(for_nobody.hear(feeds.turns, feeds.feedback))
    assert for_nobody.stream is not None
    assert for_nobody.stream.proxy.version.number == 0
    one = prompt_key(feeds.turns[3].messages)
    rewarding = rewarding_of(tmp_path / "b", golden=one, kind="linear")
    asyncio.run(rewarding.hear(feeds.turns, feeds.feedback))
    assert rewarding.stream is not None
    known = rewarding.stream.proxy.known() | rewarding.stream.second.known()
    assert feeds.feedback[3].id not in known
    assert feeds.feedback[4].id in known or rewarding.holds(feeds.turns[4].messages)


def marked(metric: str, n: int = 40) -> Feeds:
    """Every second answer is the one word, and so marked."""
    feeds = Feeds()
    for k in range(n):
        turn = feeds.turn(f"what is {k}?", "splendid" if k % 2 else "dull")
        feeds.say(turn.id, metric, bool(k % 2), who=f"person{k}")
    return feeds


def likes(rewarding: Rewarding) -> float:
    """By how much the one word is better than the other."""
    assert rewarding.stream is not None
    asked = ({"role": "user", "content": "what?"},)
    good, bad = rewarding.stream.proxy.score([Scored(asked, "splendid"), Scored(asked, "dull")])
    return good - bad


@pytest.mark.parametrize(
    ("optimize", "canary", "weights", "sign"),
    [
        ("max", ["rude"], {}, 1),
        ("min", ["rude"], {}, -1),
        ("min", ["thumb"], {}, 0),
        ("min", ["thumb"], {"rude": 2.0}, -1),
        ("max", ["rude"], {"rude": 0.0}, 0),
    ],
)
def test_declared_metrics_teach_the_reward_in_their_direction(
    tmp_path: Path, optimize: Direction, canary: list[str], weights: dict[str, float], sign: int
) -> None:
    plain = {
        "deployment": "assistant",
        "reward": {"kind": "linear", "metrics": weights},
        "canary": {"metrics": canary},
    }
    loaded = Loaded(config_of(plain), tmp_path, tmp_path / "loop.state")
    declared = {"rude": Metric("rude", "boolean", optimize=optimize)}
    rewarding = Rewarding(loaded, NO_BASE, "key", frozenset, lambda _: False, declared)
    feeds = marked("rude")
    asyncio.run(rewarding.hear(feeds.turns, feeds.feedback))
    assert np.sign(likes(rewarding)) == sign


def test_a_lora_reward_whose_model_the_server_has_lost_is_made_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def stream(self: Rewarding, base: Base) -> RewardStream:
        made.append(base.name)
        return RewardStream(tmp_path / "reward", LinearReward(), StreamRules())

    monkeypatch.setattr(Rewarding, "_stream", stream)
    rewarding = rewarding_of(tmp_path, kind="lora")
    first, reward = rewarding.stream, rewarding.reward
    asyncio.run(rewarding.whole())
    assert (made, rewarding.stream) == (["tiny"], first), "nothing is lost yet"
    rewarding.lose()
    for _ in range(2):
        asyncio.run(rewarding.whole())
    assert made == ["tiny", "tiny"]
    assert rewarding.stream is not first
    assert rewarding.reward is not reward, "what trains asks the new one"
    linear = rewarding_of(tmp_path, kind="linear")
    linear.lose()
    asyncio.run(linear.whole())
    assert len(made) == 3, "a linear head lies at no server"


def test_what_a_reward_that_is_made_once_more_had_at_the_server_goes(tmp_path: Path, monkeypatch) -> None:
    ended: list[str] = []

    class Session(NamedTuple):
        name: str

        def close(self, status: str) -> APIFuture:
            ended.append(self.name)
            done: Future[None] = Future()
            done.set_result(None)
            return AwaitableConcurrentFuture(done)

    def stream(self: Rewarding, base: Base) -> RewardStream:
        if getattr(base.service, "name", "") == "second":
            raise Unavailable("the server is away")
        return RewardStream(tmp_path / "reward", LinearReward(), StreamRules())

    monkeypatch.setattr(Rewarding, "_stream", stream)
    rewarding = rewarding_of(tmp_path, kind="lora")
    sessions = iter(("first", "second", "third"))
    rewarding.base = replace(NO_BASE, anew=lambda: Session(next(sessions)))  # type: ignore[arg-type, return-value]
    rewarding.lose()
    asyncio.run(rewarding.whole())
    assert ended == []
    rewarding.lose()
    with pytest.raises(Unavailable):
        asyncio.run(rewarding.whole())
    assert ended == ["second"], "the one before is asked until another is whole"
    asyncio.run(rewarding.whole())
    assert ended == ["second", "first"]
    asyncio.run(rewarding.close())
    assert ended == ["second", "first", "third"]


def test_a_reward_that_has_forgotten_by_half_is_read_again(tmp_path: Path, monkeypatch) -> None:
    def stream(self: Rewarding, base: Base) -> RewardStream:
        return RewardStream(tmp_path / "reward", LinearReward(), StreamRules())

    monkeypatch.setattr(Rewarding, "_stream", stream)
    feeds, rewarding = corrected(40), rewarding_of(tmp_path, kind="lora")
    asyncio.run(rewarding.hear(feeds.turns, feeds.feedback))
    assert rewarding.stream is not None
    first, known = rewarding.stream, rewarding.stream.proxy.known()
    assert known

    def forgets_by_half(*_: object, **__: object) -> RewardVersion:
        first.proxy.learned.clear()  # type: ignore[attr-defined]
        raise Unavailable("the server is busy")

    monkeypatch.setattr(first.proxy, "forget", forgets_by_half)
    http = httpx.Client(base_url="http://site", transport=httpx.MockTransport(lambda _: httpx.Response(200, json={})))
    session = LoopSession(None, Door(http, "assistant"), rewarding.lose)  # type: ignore[arg-type]
    with pytest.raises(Unavailable), session.watched():
        asyncio.run(rewarding.hear(feeds.turns, feeds.feedback))
    assert rewarding.stream.proxy.known() == set()
    asyncio.run(rewarding.whole())
    assert rewarding.stream is not first
    assert rewarding.stream.proxy.known() == known
    assert rewarding.stream.golden.ids() == first.golden.ids()
    asyncio.run(rewarding.hear(feeds.turns, feeds.feedback))
    assert rewarding.stream.proxy.known() == known


def n_models(server: RunningServer) -> int:
    """How many models the server holds."""
    with closing(sqlite3.connect(f"file:{server.data / 'loreloop.db'}?mode=ro", uri=True)) as database:
        (n,) = database.execute("SELECT count(*) FROM runs WHERE live").fetchone()
    return int(n)


@pytest.mark.filterwarnings("ignore")
def test_a_lora_reward_that_forgets_leaves_no_model_at_the_server(
    server: RunningServer, tiny_folder: Path, tmp_path: Path
) -> None:
    plain = {
        "deployment": "assistant",
        "url": server.url,
        "reward": {"kind": "lora"},
        "training": {"methods": ["grpo"]},
    }
    loaded, deleted = Loaded(config_of(plain), tmp_path, tmp_path / "loop.state"), set[str]()

    def begin() -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=server.url, api_key=server.key)

    feeds = Feeds()
    for k in range(8):
        turn = feeds.turn(f"what is {k}?", f"it is {k}", person=Person("key", f"person{k % 4}"))
        feeds.say(turn.id, "thumb", value=bool(k % 2), who=f"person{k % 4}", giver="key")
    before = n_models(server)
    with begin() as service:
        base = Base(service, "tiny", renderer_of(tiny_folder), begin)
        rewarding = Rewarding(loaded, base, server.key, lambda: frozenset(deleted), lambda _: False)
        asyncio.run(rewarding.hear(feeds.turns, feeds.feedback))
        assert n_models(server) == before + 1
        assert rewarding.stream is not None
        first, known = rewarding.stream, rewarding.stream.proxy.known()
        deleted.add("key\nperson1")
        asyncio.run(rewarding.hear(feeds.turns, feeds.feedback))
        assert rewarding.stream is not first
        assert rewarding.stream.proxy.known() < known, "it has learned anew"
        assert n_models(server) == before + 1
        asyncio.run(rewarding.close())
    assert n_models(server) == before

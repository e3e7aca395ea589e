"""A session that ends in the midst of a training costs a few steps and no cycle."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest
import tinker
from msgspec.structs import replace

from loreloop.cli.server import RunningServer
from loreloop.learn.clients import Clients
from loreloop.learn.loop import assembly, running
from loreloop.learn.loop.cycle import Course
from loreloop.learn.loop.door import Door
from loreloop.learn.loop.running import Running, run_anew
from loreloop.learn.loop.sessions import LoopSession, SessionEnded
from loreloop.learn.loop.state import LoopFolder, RunFolder
from loreloop.learn.refusals import Refused
from loreloop.protocol.errors import Forbidden, Gone, Unavailable
from tests.loop.feeds import Feeds
from tests.loop.test_course import verdicts
from tests.loop.test_whole_cycle import course_of, deploy, loaded
from tests.loop.world import World

# The SDK leaves its own background tasks to the garbage collector, and complains of its next version.
pytestmark = pytest.mark.filterwarnings("ignore")


def corrected() -> Feeds:
    """Four turns whose answers somebody has corrected."""
    feeds = Feeds()
    for n in range(4):
        feeds.say(feeds.turn(f"what is {n}?", "it is the fox").id, "demonstration", f"it is {n}")
    return feeds


def test_a_training_goes_on_in_a_new_session_behind_its_last_saved_step(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(server)
    feeds = Feeds()
    for n in range(6):
        turn = feeds.turn(f"what is {n}?", "it is the fox", prompt=(1, 5, 6), tokens=(7, 8), logprobs=(-1.0, -1.0))
        feeds.say(turn.id, "demonstration", f"it is {n}")
    begun: list[dict[str, str]] = []
    made, told = Clients.training, RunFolder.tell

    async def training(self: Clients, name: str = "policy"):
        if not self.made:
            begun.append(dict(self.states))
        return await made(self, name)

    def tell(self: RunFolder, record) -> None:
        told(self, record)
        if record.step == 14 and len(begun) == 1:
            sessions[-1]()

    sessions = []
    watched = assembly.LoopSession

    def session(service, door, lost):
        id = service.holder.get_session_id()
        body = {"reason": {"type": "success"}}
        headers = {"authorization": f"Bearer {server.key}"}
        at = f"{server.url}/api/v1/sessions/{id}/finish"
        sessions.append(lambda: httpx.post(at, json=body, headers=headers).raise_for_status())
        return watched(service, door, lost)

    monkeypatch.setenv("LORELOOP_API_KEY", server.key)
    monkeypatch.setattr(assembly, "door_of", lambda _: feeds.door(server.url, server.key))
    monkeypatch.setattr(assembly, "LoopSession", session)
    monkeypatch.setattr(running, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(Clients, "training", training)
    monkeypatch.setattr(RunFolder, "tell", tell)
    plan = {"rank": 4, "learning_rate": 0.01, "epochs": 4, "batch_size": 1, "least_examples": 2, "methods": ["sft"]}
    plan["general"] = 0  # six lines make an epoch
    settings = loaded(server, tmp_path, training=plan)
    folder, words = LoopFolder(settings.folder), list[str]()

    def in_canary() -> bool:
        found = folder.load()
        return found is not None and found.stage == "canary"

    asyncio.run(run_anew(lambda: assembly.opened(settings), Running(wish=in_canary, tell=words.append)))
    assert any("has ended the loop's session" in one for one in words)
    assert len(sessions) == 4, "twice the loop's, and each time one for its training"
    first, second = begun
    assert not first
    assert second["policy"].endswith("state-000012"), "an epoch had ended there"
    assert verdicts(settings.folder) == ["passed"], "no cycle was lost"
    lines = (folder.cycle(1) / "sft" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 25)]


def test_a_cycle_whose_weights_to_begin_with_are_gone_from_the_disk_ends_and_says_so(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(server)
    feeds = corrected()
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as service:
        saved = service.create_lora_training_client(base_model="tiny", rank=4).save_state("vanished").result().path
    (folder,) = (one for one in server.data.rglob("vanished*") if one.is_dir())
    shutil.rmtree(folder)
    plan = {"rank": 4, "epochs": 1, "least_examples": 2, "methods": ["sft"], "general": 0}

    async def go() -> None:
        async with course_of(server, feeds, loaded(server, tmp_path, training=plan), monkeypatch) as course:
            for _ in range(2):
                assert await course.step()
            state = course.folder.load()
            assert state is not None
            course.folder.save(replace(state, champion=replace(state.champion, state=saved)))
            assert await course.step()
            decision, after = course.folder.decisions()[-1], course.folder.load()
            assert after is not None
            assert (decision.verdict, after.stage) == ("void", "idle")
            assert f"The files of {saved} are gone" in decision.sentence

    asyncio.run(go())


def test_who_runs_a_loop_is_told_that_its_server_is_away_while_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PATIENCE_SECONDS", 0.0)
    world, words, opened = World(), list[str](), list[str]()
    world.corrected(1)
    course, session_ended = world.course(tmp_path), SessionEnded("The server has ended the loop's session.")

    async def ends() -> bool:
        raise session_ended

    @asynccontextmanager
    async def open_course() -> AsyncIterator[Course]:
        opened.append("")
        if len(opened) in (2, 3):
            raise Unavailable("The server does not answer.")
        if len(opened) == 1:
            monkeypatch.setattr(course, "step", ends)
        else:
            assert course.folder.why()["sentence"] == "The server does not answer."
        yield course

    asyncio.run(run_anew(open_course, Running(wish=lambda: len(opened) == 4, tell=words.append)))
    assert words == ["The server has ended the loop's session.", "The server does not answer."]


def test_trainings_leave_no_models_at_the_server(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(server)
    feeds = corrected()
    plan = {"rank": 4, "epochs": 1, "least_examples": 2, "methods": ["sft"], "general": 0}

    def n_live() -> int:
        with closing(sqlite3.connect(f"file:{server.data / 'loreloop.db'}?mode=ro", uri=True)) as database:
            (n,) = database.execute("SELECT count(*) FROM runs WHERE live").fetchone()
        return int(n)

    async def go() -> None:
        async with course_of(server, feeds, loaded(server, tmp_path, training=plan), monkeypatch) as course:
            for _ in range(2):
                assert await course.step()
            n_before, state = n_live(), course.folder.load()
            assert state is not None
            for _ in range(2):
                course.folder.save(state)
                assert await course.step()
                shutil.rmtree(course.folder.cycle(1) / "sft")
            assert n_live() == n_before

    asyncio.run(go())


class _Holder:
    def get_session_id(self) -> str:
        return "s-1"


class _Service:
    holder = _Holder()


@pytest.mark.parametrize(
    ("heartbeat", "error", "kind"),
    [
        (410, Refused("no such model"), SessionEnded),
        (404, Gone("no such model"), SessionEnded),
        (200, Refused("no such model"), Refused),
        (200, Forbidden("no such model"), Forbidden),
        (200, Gone("The state of r is lost."), Unavailable),
        (410, Unavailable("busy"), Unavailable),
        (503, Refused("no such model"), Unavailable),
    ],
)
def test_what_is_the_sessions_fault_is_told_from_what_was_refused(heartbeat: int, error: Exception, kind: type) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.content == b'{"session_id":"s-1"}'
        return httpx.Response(heartbeat, json={"error": {"message": "so"}})

    http = httpx.Client(base_url="http://site", transport=httpx.MockTransport(answer))
    lost: list[str] = []
    session = LoopSession(_Service(), Door(http, "assistant"), lambda: lost.append("lost"))  # type: ignore[arg-type]
    with http, pytest.raises(kind) as caught, session.watched():
        raise error
    assert type(caught.value) is kind
    assert lost == ["lost"], "what was half learned within the block is read again"


AWAY = httpx.Request("POST", "http://site/x")


@pytest.mark.parametrize(
    "error",
    [tinker.APIConnectionError(request=AWAY), httpx.ReadError("reset", request=AWAY), tinker.TinkerError("no token")],
    ids=["sdk", "connection", "other"],
)
@pytest.mark.parametrize("at", ["opening", "closing"])
def test_a_server_that_is_away_when_a_session_begins_or_ends_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, at: str
) -> None:
    monkeypatch.setattr(running, "PATIENCE_SECONDS", 0.0)
    world, words, opened = World(), list[str](), list[str]()
    course = world.course(tmp_path)

    async def ends() -> bool:
        raise SessionEnded("The server has ended the loop's session.")

    @asynccontextmanager
    async def open_course() -> AsyncIterator[Course]:
        opened.append("")
        if len(opened) == 1:
            with monkeypatch.context() as patched:
                patched.setattr(course, "step", ends)
                yield course
            if at == "closing":
                raise error
            return
        if len(opened) == 2 and at == "opening":
            raise error
        yield course

    asyncio.run(run_anew(open_course, Running(wish=lambda: len(opened) == 3 - (at == "closing"), tell=words.append)))
    assert words[1].startswith("The server did not go on with what the loop needs")
    assert course.folder.why()["sentence"] == words[1]


def test_what_is_refused_for_good_while_a_loop_is_opened_again_is_told_by_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, opened = World(), list[str]()
    course = world.course(tmp_path)

    async def ends() -> bool:
        raise SessionEnded("The server has ended the loop's session.")

    @asynccontextmanager
    async def open_course() -> AsyncIterator[Course]:
        opened.append("")
        if len(opened) == 2:
            raise Forbidden("This key may not train.")
        course.step = ends  # type: ignore[method-assign]
        yield course

    monkeypatch.setattr(running, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(Forbidden):
        asyncio.run(run_anew(open_course, Running()))
    assert course.folder.why()["sentence"] == "This key may not train."


class _OtherHolder(_Holder):
    def get_session_id(self) -> str:
        return "s-2"


class _Other(_Service):
    holder = _OtherHolder()


@pytest.mark.parametrize(("ended", "kind"), [("s-1", SessionEnded), ("s-2", Unavailable), ("none", Refused)])
def test_a_reward_whose_session_has_ended_goes_on_in_a_new_one(ended: str, kind: type) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        status = 410 if json.loads(request.content)["session_id"] == ended else 200
        return httpx.Response(status, json={"error": {"message": "so"}})

    http = httpx.Client(base_url="http://site", transport=httpx.MockTransport(answer))
    session = LoopSession(_Service(), Door(http, "assistant"), beside=lambda: _Other())  # type: ignore[arg-type, return-value]
    with http, pytest.raises(kind) as caught, session.watched():
        raise Refused("The session of m has ended")
    assert type(caught.value) is kind

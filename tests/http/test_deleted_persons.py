"""Deletion of a person against what is on its way at the same moment, and the list of who was deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest

from loreloop.learn.loop.door import Door, person_key
from loreloop.protocol.sampling import SampleOp
from loreloop.store import deleted, feedback
from tests.http.recorded import Room, play_recorded
from tests.http.test_episodes import raw
from tests.http.test_persons import MEMORY, key_id, say
from tests.store.place import write_now


def door_of(room: Room) -> Door:
    """The loop's own client, for a thread beside the site's."""
    loop = asyncio.get_running_loop()

    def handle(request: httpx.Request) -> httpx.Response:
        asked = room.site.client.request(request.method, str(request.url), content=request.content)
        found = asyncio.run_coroutine_threadsafe(asked, loop).result(20)
        return httpx.Response(found.status_code, content=found.content)

    return Door(httpx.Client(base_url="http://site", transport=httpx.MockTransport(handle)), "bot")


async def while_it_answers(room: Room, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Awaitable[Any]]) -> Any:
    """Asks by `work`, deletes ann while her answer is being sampled, and gives what `work` gave."""
    speaker = room.script.speaker
    room.says("a long answer " * 20)
    drawing, draw = asyncio.Event(), speaker.draw
    loop, may_end = asyncio.get_running_loop(), False

    def slowly(op: SampleOp, index: int, position: int) -> int:
        loop.call_soon_threadsafe(drawing.set)
        return draw(op, index, position) if may_end or position < 10 else draw(op, index, 5)

    monkeypatch.setattr(speaker, "draw", slowly)
    asked = asyncio.ensure_future(work())
    await asyncio.wait_for(drawing.wait(), 20)
    assert not asked.done()
    await room.loop("DELETE", "/persons/ann")
    may_end = True
    return await asyncio.wait_for(asked, 60)


def test_an_answer_in_flight_is_not_kept_for_a_person_who_is_deleted_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(room: Room) -> None:
        asked = lambda: room.openai().responses.create(  # noqa: E731
            model="bot", input="hi", user="ann", max_output_tokens=2000
        )
        answer = await while_it_answers(room, monkeypatch, asked)
        assert answer.store is False
        with pytest.raises(openai.NotFoundError):
            await room.openai().responses.retrieve(answer.id)
        assert [(turn["fate"], turn["messages"]) for turn in await room.turns()] == [("dropped", [])]
        # Whoever comes back later is answered as anybody is.
        monkeypatch.undo()
        room.says("yes")
        assert (await room.openai().responses.create(model="bot", input="hi", user="ann")).store is True

    play_recorded(scene)


def test_a_memory_in_flight_is_not_begun_for_a_person_who_is_deleted_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(room: Room) -> None:
        asked = lambda: raw(room, user="ann", memory=MEMORY, max_tokens=2000)  # noqa: E731
        answer = (await while_it_answers(room, monkeypatch, asked)).json()
        assert "was deleted while" in answer["warning"]
        assert (await room.loop("GET", "/persons/ann/export"))["memories"] == []

    play_recorded(scene)


def test_feedback_that_was_let_in_before_a_deletion_is_not_kept_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        hers, his = [(await raw(room, user=user)).json()["id"] for user in ("ann", "bob")]
        await room.turns()
        give, person = feedback.give, deleted.Person(key_id(room, room.key), "ann")

        def after_deletion(connection: Any, asked: Any) -> Any:
            # What stands in line before this write, while its statement was checked already.
            deleted.note(connection, person, [], 1e12)
            return give(connection, asked)

        monkeypatch.setattr(feedback, "give", after_deletion)
        for target, fields in ((his, {"who": "ann"}), (hers, {"who": "bob"})):
            assert "was deleted" in (await say(room, target, 410, **fields))["error"]["message"]
        assert (await room.loop("GET", "/deployments/bot/feedback"))["feedback"] == []

    play_recorded(scene)


def test_a_deleted_person_says_nothing_by_the_key_that_speaks_either() -> None:
    async def scene(room: Room) -> None:
        # A person is a user of a key: here of the one that gives feedback, and not of the one that asked.
        app, site = room.site.new_key("infer"), room.site.new_key("infer", "feedback:bot")
        answer = await room.ask("yes", key=app, user="bob")
        await room.ask("yes", key=site, user="ann")
        await room.turns()
        assert (await room.loop("DELETE", "/persons/ann", key=site))["turns"] == 1
        assert "'ann' was deleted" in (await say(room, answer.id, 410, site, who="ann"))["error"]["message"]
        await say(room, answer.id, key=site, who="bob")

    play_recorded(scene)


def test_the_loop_hears_of_every_deleted_person() -> None:
    async def scene(room: Room) -> None:
        owner, store = key_id(room, room.key), room.site.office.store
        names = [f"user {number}/é" for number in range(2345)]

        def forget_all(connection: Any) -> None:
            for name in names:
                deleted.note(connection, deleted.Person(owner, name), ["bot"], 1.0)

        write_now(store, forget_all)
        found = await asyncio.to_thread(door_of(room).deleted_persons)
        assert found == {person_key(owner, name) for name in names}
        # Who is deleted again while pages are turned hides nobody.
        page = await room.loop("GET", "/deployments/bot/deleted-persons?limit=2")
        write_now(store, deleted.note, deleted.Person(**page["persons"][0]), ["bot"], 9e9)
        rest = await room.loop("GET", f"/deployments/bot/deleted-persons?limit=2&after={page['next']}")
        assert len({one["user"] for one in (*page["persons"], *rest["persons"])}) == 4
        for wrong in ("x", "W10", "e30", "%C3%A9"):
            refused = await room.loop("GET", f"/deployments/bot/deleted-persons?after={wrong}", 400)
            assert "must be the `next`" in refused["detail"]

    play_recorded(scene)

"""Consent by the public face: a no stands whoever says yes later, and what was learned in between is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.http.recorded import ASKING, Room, play_recorded
from tests.http.test_deleted_persons import door_of
from tests.http.test_episodes import raw
from tests.http.test_feedback_on_turns import expire
from tests.http.test_persons import key_id
from tests.store.place import write_now

YES, NO = {"x-consent": "yes"}, {"x-consent": "no"}


async def fate(room: Room, turn_id: str) -> str:
    await room.turns()
    return str((await room.loop("GET", f"/turns/{turn_id}"))["fate"])


async def mark(room: Room, turn_id: str, status: int = 200, key: str | None = None, **marks: bool) -> dict[str, Any]:
    marked: dict[str, Any] = await room.loop("POST", f"/turns/{turn_id}", status, key, json=marks)
    return marked


async def refuse_in_request(room: Room, app: str) -> str:
    return str((await room.ask("yes", key=app, user="ann", extra_headers=NO)).id)


async def refuse_by_asker(room: Room, app: str) -> str:
    answer = await room.ask("yes", key=app, user="ann", extra_headers=YES)
    await room.turns()
    await mark(room, answer.id, key=app, consent=False)
    return str(answer.id)


async def refuse_by_owner(room: Room, app: str) -> str:
    answer = await room.ask("yes", key=app, user="ann")
    await room.turns()
    await mark(room, answer.id, consent=False)
    return str(answer.id)


@pytest.mark.parametrize("refuse", [refuse_in_request, refuse_by_asker, refuse_by_owner])
def test_a_no_stands_whoever_says_yes_later(refuse: Any) -> None:
    async def scene(room: Room) -> None:
        app = room.site.new_key("infer")
        refused = await refuse(room, app)
        await room.turns()
        for key in (None, app):
            assert "has said no" in (await mark(room, refused, 409, key, consent=True))["detail"]
        assert await fate(room, refused) == "no_consent"
        (turn,) = await room.turns()
        assert turn["messages"] == []
        assert (await mark(room, refused, key=app, side=True, consent=False))["fate"] == "no_consent"

    play_recorded(scene)


def test_where_nobody_has_said_anything_the_asking_key_alone_may_say_yes() -> None:
    async def scene(room: Room) -> None:
        await room.deploy(consent=False)
        app = room.site.new_key("infer")
        answer = await room.ask("yes", key=app, user="ann")
        await room.turns()
        # The key of the owner, who would like to train on it, does not speak for the person.
        assert "it alone may say yes" in (await mark(room, answer.id, 403, consent=True))["detail"]
        assert await fate(room, answer.id) == "no_consent"
        assert (await mark(room, answer.id, key=app, consent=True))["fate"] == "waiting"
        await mark(room, answer.id, consent=True)  # says nothing new
        assert (await room.turns())[-1]["messages"] == ASKING

    play_recorded(scene)


def test_a_no_holds_for_what_repeats_its_words() -> None:
    """Later turns of an episode hold what was said before in their messages."""

    async def scene(room: Room) -> None:
        room.says("yes")
        first = (await raw(room, user="ann", headers=NO)).json()
        episode = {"episode_id": first["episode_id"]}
        silent = (await raw(room, user="ann", **episode)).json()["id"]
        by_herself = (await raw(room, user="ann", headers=YES, **episode)).json()["id"]
        by_another = (await raw(room, user="bob", headers=YES, **episode)).json()["id"]
        elsewhere = (await raw(room, user="ann")).json()["id"]
        fates = {turn["id"]: turn["fate"] for turn in await room.turns()}
        assert [fates[id] for id in (first["id"], silent, by_another)] == ["no_consent"] * 3
        assert [fates[id] for id in (by_herself, elsewhere)] == ["waiting"] * 2
        await mark(room, by_another, 409, consent=True)

    play_recorded(scene)


def test_what_was_withdrawn_since_it_was_read_is_told_and_not_used() -> None:
    async def scene(room: Room) -> None:
        refused, side, cut, fine = [(await room.ask("yes", user=user)).id for user in ("ann", "bob", "cid", "eve")]
        read = [turn["id"] for turn in await room.turns()]
        await mark(room, refused, consent=False)
        await mark(room, side, side=True)
        used = {"candidate": "c-1", "turns": read, "revision": "tinker://r/sampler_weights/c-1"}
        told = await room.loop("POST", "/deployments/bot/used", json=used)
        assert told == {"candidate": "c-1", "used": 2, "unknown": [], "withdrawn": [refused, side]}
        turns = {turn["id"]: (turn["fate"], turn["candidate"]) for turn in await room.turns()}
        assert turns[refused] == ("no_consent", None)
        assert turns[side] == ("side", None)
        assert turns[fine] == turns[cut] == ("used", "c-1")
        # The weights may hold her words all the same, so her deletion tells of them.
        gone = await room.loop("DELETE", "/persons/ann")
        assert [use["candidate"] for use in gone["trained"]] == ["c-1"]
        # Withdrawn after the first time, it is told the next time.
        await mark(room, fine, consent=False)
        again = await room.loop("POST", "/deployments/bot/used", json=used)
        assert (again["unknown"], again["withdrawn"]) == ([refused], [side, fine])
        # The loop hears of both, and then promotes nothing.
        gone = await asyncio.to_thread(door_of(room).mark_used, "c-1", None, read)
        assert {*gone} == {refused, side, fine}

    play_recorded(scene)


@pytest.mark.parametrize("route", ["chat/completions", "responses"])
def test_a_base_and_weights_that_nobody_deployed_take_any_metadata(route: str) -> None:
    async def scene(room: Room) -> None:
        await room.deploy("quiet", record=False)
        asked = {"messages": ASKING} if route == "chat/completions" else {"input": "hi"}
        strange = {"consent": "granted on Monday", "side_turn": "sideways", "episode_id": "no spaces"}
        room.says("yes")

        async def status(model: str, **fields: Any) -> int:
            body = {"model": model} | asked | fields
            headers = fields.pop("headers", {})
            body.pop("headers", None)
            answer = await room.site.client.post(f"http://site/v1/{route}", json=body, headers=headers)
            return int(answer.status_code)

        assert await status("fake", metadata=strange) == 200
        assert await status("fake", metadata={"consent": "no"}, headers=YES) == 200
        assert await status("fake", user="u" * 501) == 200
        assert await status("quiet", user="u" * 501) == 400
        assert await status("quiet", metadata={"consent": "granted on Monday"}) == 200
        # A deployment's canary goes by the episode, and what records goes by all of them.
        assert await status("quiet", metadata={"episode_id": "no spaces"}) == 400
        assert await status("bot", metadata={"consent": "granted on Monday"}) == 400
        assert await room.turns() == []

    play_recorded(scene)


def test_the_key_of_an_owner_that_asked_itself_is_the_asking_key() -> None:
    async def scene(room: Room) -> None:
        await room.deploy(consent=False)
        answer = await room.ask("yes")
        (turn,) = await room.turns()
        assert turn["person"]["key_id"] == key_id(room, room.key)
        assert (await mark(room, answer.id, consent=True))["fate"] == "waiting"

    play_recorded(scene)


def test_a_no_that_has_expired_stands_against_everybody_in_its_episode() -> None:
    """With its content went the name of whoever said no; the words come again in what the client sends."""

    async def scene(room: Room) -> None:
        room.says("yes")
        first = (await raw(room, user="ann", headers=NO)).json()
        await room.turns()
        write_now(room.site.services.store, expire, first["id"])
        by_herself = (await raw(room, user="ann", headers=YES, episode_id=first["episode_id"])).json()["id"]
        anew = (await raw(room, user="ann", headers=YES)).json()["id"]
        assert [await fate(room, id) for id in (first["id"], by_herself, anew)] == ["expired", "no_consent", "waiting"]
        await mark(room, by_herself, 409, consent=True)

    play_recorded(scene)

"""Persons: what is kept of one is given out and deleted with all that was learned told; weights of one's own."""

from __future__ import annotations

import time
from typing import Any

import pytest

from loreloop.store import keys, persons
from tests.http.recorded import ASKING, Room, play_recorded
from tests.http.test_deployed_names import checkpoint
from tests.http.test_episodes import HEADER, raw
from tests.store.place import write_now

MEMORY = {"id": "notes", "budget_tokens": 400}


def key_id(room: Room, secret: str) -> str:
    found = room.site.services.store.read(keys.find, secret, 0.0)
    assert found is not None
    return found.id


def test_a_person_is_deleted_with_memories_and_answers_and_stays_deleted() -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        await raw(room, user="ann", memory=MEMORY)
        await room.openai().responses.create(model="bot", input="hi", user="ann")
        kept = (await raw(room, user="bob")).json()["id"]
        await room.turns()
        mine = [turn["id"] for turn in await room.turns(user="ann")]
        used = {"candidate": "c-1", "turns": [*mine, kept], "revision": "tinker://r/sampler_weights/c-1"}
        await room.loop("POST", "/deployments/bot/used", json=used)

        exported = await room.loop("GET", "/persons/ann/export")
        assert [turn["id"] for turn in exported["turns"]] == mine
        assert exported["memories"] == ["notes"]

        gone = await room.loop("DELETE", "/persons/ann")
        assert (gone["turns"], gone["memories"], gone["responses"]) == (2, 1, 1)
        (use,) = gone["trained"]
        assert (use["deployment"], use["candidate"], use["revision"]) == ("bot", "c-1", used["revision"])
        assert [turn["id"] for turn in await room.turns()] == [kept]
        await room.loop("GET", f"/turns/{mine[0]}", 404)
        told = await room.loop("GET", "/deployments/bot/deleted-persons")
        assert told["persons"] == [{"key_id": key_id(room, room.key), "user": "ann"}]

        # Nothing is kept of her again, and what a loop still holds of her it cannot have used unnoticed.
        again = (await raw(room, user="ann")).json()["id"]
        (trace,) = [turn for turn in await room.turns() if turn["id"] == again]
        assert (trace["fate"], trace["messages"], trace["person"]["user"]) == ("dropped", [], "")
        late = await room.loop("POST", "/deployments/bot/used", json=used | {"candidate": "c-2"})
        assert late["unknown"] == mine
        assert (await room.loop("DELETE", "/persons/ann"))["trained"] == gone["trained"]

    play_recorded(scene)


def test_candidates_that_began_with_a_persons_weights_are_told_as_well() -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        hers, his = [(await raw(room, user=user)).json()["id"] for user in ("ann", "bob")]
        await room.turns()
        for n, (turn, start) in enumerate(((hers, None), (his, "tinker://r/sampler_weights/c-0"), (his, None))):
            used = {"candidate": f"c-{n}", "turns": [turn], "revision": f"tinker://r/sampler_weights/c-{n}"}
            await room.loop("POST", "/deployments/bot/used", json=used | ({"start": start} if start else {}))
        assert [one["candidate"] for one in (await room.loop("DELETE", "/persons/ann"))["trained"]] == ["c-0", "c-1"]
        trained = (await room.loop("DELETE", "/persons/bob"))["trained"]
        assert [(one["candidate"], one["revision"]) for one in trained] == [
            ("c-1", "tinker://r/sampler_weights/c-1"),
            ("c-2", "tinker://r/sampler_weights/c-2"),
        ]

    play_recorded(scene)


def test_what_waits_of_a_deleted_person_is_not_kept() -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        waiting = (await raw(room, user="ann")).json()["id"]
        assert room.site.services.recorder.whereabouts(waiting) == "pending"
        await room.loop("DELETE", "/persons/ann")
        assert [(turn["id"], turn["fate"]) for turn in await room.turns()] == [(waiting, "dropped")]
        assert room.site.services.recorder.whereabouts(waiting) == "dropped"
        assert (await room.loop("GET", "/persons/ann/export"))["turns"] == []

    play_recorded(scene)


async def say(room: Room, target: str, status: int = 200, key: str | None = None, **fields: Any) -> dict[str, Any]:
    body = {"target_id": target, "metric": "thumb", "value": True} | fields
    said: dict[str, Any] = await room.loop("POST", "/feedback", status, key, json=body)
    return said


def test_feedback_goes_with_a_person_who_gave_it_or_whom_it_was_given() -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        hers, his, empty = [(await raw(room, user=user)).json() for user in ("ann", "bob", "cid")]
        await room.turns()
        on_hers = await say(room, hers["id"], who="bob", why="I was there")
        of_hers = [
            await say(room, his["id"], who="ann"),
            await say(room, his["id"], who="ann", value=False),
            await say(room, empty["episode_id"], who="ann", source="implicit", metric="accepted"),
        ]
        stays = await say(room, his["id"], who="ann", source="judge")  # a judge that is called so
        hers_exported = (await room.loop("GET", "/persons/ann/export"))["feedback"]
        assert [one["id"] for one in hers_exported] == [on_hers["id"], *(one["id"] for one in of_hers)]
        fates = {turn["id"]: turn["fate"] for turn in await room.turns()}
        assert fates[empty["id"]] == "trainable"

        assert (await room.loop("DELETE", "/persons/ann"))["feedback"] == 4
        (left,) = (await room.loop("GET", "/deployments/bot/feedback"))["feedback"]
        assert left["id"] == stays["id"]
        fates = {turn["id"]: turn["fate"] for turn in await room.turns()}
        assert fates == {his["id"]: "trainable", empty["id"]: "waiting"}
        assert (await room.loop("GET", "/persons/ann/export"))["feedback"] == []
        assert "was deleted" in (await say(room, his["id"], 410, who="ann"))["error"]["message"]

    play_recorded(scene)


def test_what_was_said_of_whole_episodes_goes_with_each_person_in_them() -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        headers = {"x-episode-id": "shared"}
        for user in ("ann", "bob"):
            (await raw(room, user=user, headers=headers)).json()
        his = (await raw(room, user="bob")).json()
        await room.turns()
        on_both = await say(room, "shared", who="a tester", metric="comment", value="ann was rude")
        on_his = await say(room, his["episode_id"], who="a tester", metric="accepted")
        exported = {user: await room.loop("GET", f"/persons/{user}/export") for user in ("ann", "bob")}
        assert [one["id"] for one in exported["ann"]["feedback"]] == [on_both["id"]]
        assert [one["id"] for one in exported["bob"]["feedback"]] == [on_both["id"], on_his["id"]]
        assert (await room.loop("DELETE", "/persons/ann"))["feedback"] == 1
        (left,) = (await room.loop("GET", "/deployments/bot/feedback"))["feedback"]
        assert left["id"] == on_his["id"]
        assert [turn["fate"] for turn in await room.turns()] == ["waiting", "trainable"]

    play_recorded(scene)


def test_what_was_said_of_a_waiting_episode_goes_with_its_person() -> None:
    async def scene(room: Room) -> None:
        room.keep_turns_late()
        room.says("yes")
        waiting = (await raw(room, user="ann")).json()
        assert (await say(room, waiting["episode_id"], who="a friend", metric="accepted"))["turn"] == "pending"
        await room.loop("DELETE", "/persons/ann")
        await room.turns()
        assert (await room.loop("GET", "/deployments/bot/feedback"))["feedback"] == []

    play_recorded(scene)


def test_nobody_is_not_a_person_who_could_be_deleted() -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        nameless = (await raw(room)).json()["id"]
        await raw(room, user=" ")
        for path in ("/persons/", "/persons/?key="):
            refused = await room.loop("DELETE", path, 400)
            assert "A person who is deleted has a name" in refused["error"]["message"]
        for odd in ("%2F", "%2e%2e", "%00", "%09", "%E2%80%8B", "%FF", "/", "%2520"):
            assert (await room.loop("DELETE", f"/persons/{odd}"))["turns"] == 0
        assert len(await room.turns()) == 2, "both are written by now"
        assert (await room.loop("DELETE", "/persons/%20"))["turns"] == 1
        assert [turn["id"] for turn in await room.turns()] == [nameless]
        # It is not remembered as deleted either, so that what comes later is kept.
        await raw(room)
        assert [turn["fate"] for turn in await room.turns()] == ["waiting", "waiting"]
        refused = await room.loop("PUT", "/deployments/bot/persons/", 400, json={"target": "fake"})
        assert "are for a user with a name" in refused["error"]["message"]

    play_recorded(scene)


def test_persons_that_are_made_up_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persons, "MOST_UNKNOWN", 3)

    async def scene(room: Room) -> None:
        app, other = room.site.new_key("infer"), room.site.new_key("infer")
        await room.ask("yes", key=app, user="ann")
        await room.turns()
        for number in range(3):
            await room.loop("DELETE", f"/persons/made-up-{number}", key=app)
        refused = await room.loop("DELETE", "/persons/made-up-3", 413, key=app)
        assert "Nothing is kept of the person 'made-up-3'" in refused["error"]["message"]
        told = await room.loop("GET", "/deployments/bot/deleted-persons")
        assert [one["user"] for one in told["persons"]] == [f"made-up-{number}" for number in range(3)]
        # Whoever is remembered already costs nothing, and whoever is there is always deleted.
        await room.loop("DELETE", "/persons/made-up-1", key=app)
        assert (await room.loop("DELETE", "/persons/ann", key=app))["turns"] == 1
        await room.loop("DELETE", "/persons/made-up-3", key=other)
        await room.loop("DELETE", f"/persons/{'x' * 501}", 400, key=other)

    play_recorded(scene)


def test_a_name_is_its_key_s_own() -> None:
    async def scene(room: Room) -> None:
        app, other = room.site.new_key("infer", "feedback"), room.site.new_key("infer", "feedback")
        turns = {key: (await room.ask("yes", key=key, user="bob")).id for key in (app, other)}
        await room.turns()
        for key, turn_id in turns.items():
            await say(room, turn_id, key=key, who="ann")
        assert (await room.loop("DELETE", "/persons/ann", key=app))["feedback"] == 1
        (left,) = (await room.loop("GET", "/deployments/bot/feedback"))["feedback"]
        assert left["target_id"] == turns[other]
        await say(room, turns[other], key=other, who="ann", value=False)

    play_recorded(scene)


def test_a_key_that_names_a_person_as_the_operator_is_named_reads_and_deletes_nothing_of_theirs() -> None:
    """Who reviews at the command line has no key, and signs with the name of a shell user."""

    async def scene(room: Room) -> None:
        app, other = room.site.new_key("infer", "feedback"), room.site.new_key("infer")
        asked = ((app, "ann"), (app, "cid"), (other, "bob"))
        hers, friends, his = [(await room.ask("yes", key=key, user=user)).id for key, user in asked]
        await room.turns()
        later = time.time() + 600.0
        made = write_now(room.site.services.store, keys.create, "ann", ("admin",), time.time(), later)
        of_other = await say(room, his, key=made.secret, who="ann", metric="demonstration", value="no, 4")
        assert of_other["giver"] == "operator:ann"
        of_friend = await say(room, friends, key=made.secret, who="ann", metric="accepted")
        of_hers = await say(room, hers, key=made.secret, who="ann", source="judge")
        exported = (await room.loop("GET", "/persons/ann/export", key=app))["feedback"]
        assert {one["id"] for one in exported} == {of_friend["id"], of_hers["id"]}, "of the key's own turns alone"
        assert (await room.loop("DELETE", "/persons/ann", key=app))["feedback"] == 1
        left = (await room.loop("GET", "/deployments/bot/feedback"))["feedback"]
        assert {one["id"] for one in left} == {of_other["id"], of_friend["id"]}

    play_recorded(scene)


def test_what_was_said_of_a_waiting_turn_goes_with_its_person() -> None:
    async def scene(room: Room) -> None:
        room.keep_turns_late()
        room.says("yes")
        waiting = (await raw(room, user="ann")).json()["id"]
        assert (await say(room, waiting, who="a friend"))["turn"] == "pending"
        await room.loop("DELETE", "/persons/ann")
        await room.turns()
        assert (await room.loop("GET", "/deployments/bot/feedback"))["feedback"] == []

    play_recorded(scene)


def test_an_export_holds_what_nobody_may_learn_from() -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        await raw(room, user="a/b", headers={"x-consent": "no"})
        await room.turns()
        (turn,) = (await room.loop("GET", "/persons/a%2Fb/export"))["turns"]
        assert (turn["messages"], turn["fate"]) == (ASKING, "no_consent")

    play_recorded(scene)


def test_persons_of_other_keys_are_nobodys_but_an_admins() -> None:
    async def scene(room: Room) -> None:
        app, other = room.site.new_key("infer"), room.site.new_key("infer")
        await room.ask("yes", key=app, user="ann")
        await room.turns()
        assert (await room.loop("DELETE", "/persons/ann", key=other))["turns"] == 0
        await room.loop("DELETE", f"/persons/ann?key={key_id(room, app)}", 403, key=other)
        assert (await room.loop("DELETE", f"/persons/ann?key={key_id(room, app)}"))["turns"] == 1

    play_recorded(scene)


def test_a_person_is_answered_by_weights_of_their_own() -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        path = await checkpoint(room.site, "a", await room.site.model())
        set_ = await room.loop("PUT", "/deployments/bot/persons/ann", json={"target": path})
        assert (set_["user"], set_["target"]) == ("ann", path)
        assert (await room.loop("GET", "/deployments/bot/persons/ann")) == set_
        assert (await room.loop("GET", "/deployments/bot/persons"))["persons"] == [set_]
        assert (await raw(room, user="ann")).headers[HEADER] == path
        assert (await raw(room, user="bob")).headers[HEADER] == "fake"
        assert {(turn["person"]["user"], turn["arm"]) for turn in await room.turns()} == {
            ("ann", "person"),
            ("bob", "main"),
        }
        # Weights that answer somebody are not deleted under them.
        held = await room.site.client.delete(f"http://site/loop/v1/checkpoints/{path.removeprefix('tinker://')}")
        assert held.status_code == 409, held.text
        await room.deploy()  # a new version of the shared weights lets go of nobody's own
        assert (await raw(room, user="ann")).headers[HEADER] == path
        await room.loop("DELETE", "/deployments/bot/persons/ann")
        assert (await raw(room, user="ann")).headers[HEADER] == "fake"
        await room.loop("GET", "/deployments/bot/persons/ann", 404)
        await room.loop("DELETE", "/deployments/bot/persons/ann", 404)
        await room.loop("PUT", "/deployments/bot/persons/ann", 404, json={"target": "tinker://x/sampler_weights/y"})
        await room.loop("PUT", "/deployments/none/persons/ann", 404, json={"target": path})

    play_recorded(scene)


def test_a_user_of_several_keys_must_be_told_apart() -> None:
    async def scene(room: Room) -> None:
        app, other = room.site.new_key("infer"), room.site.new_key("infer")
        for key in (app, other):
            await room.ask("yes", key=key, user="ann")
        await room.ask("yes", key=app, user="bob")
        await room.turns()
        path = await checkpoint(room.site, "a", await room.site.model())
        refused = await room.loop("PUT", "/deployments/bot/persons/ann", 400, json={"target": path})
        assert key_id(room, app) in refused["detail"]
        body: dict[str, Any] = {"target": path, "key": key_id(room, other)}
        assert (await room.loop("PUT", "/deployments/bot/persons/ann", json=body))["key"] == key_id(room, other)
        # Of whom one key alone has turns needs no more words.
        found = await room.loop("PUT", "/deployments/bot/persons/bob", json={"target": path})
        assert found["key"] == key_id(room, app)

    play_recorded(scene)


def test_a_deleted_deployment_takes_its_turns_along() -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        await raw(room)
        await room.turns()
        await raw(room)  # waits
        await room.loop("DELETE", "/deployments/bot")
        await room.deploy()
        assert await room.turns() == []
        counts = await room.loop("GET", "/deployments/bot/turns/counts")
        assert (sum(counts["fates"].values()), counts["bytes"], counts["dropped"]) == (0, 0, 0)

    play_recorded(scene)

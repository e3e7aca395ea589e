"""Feedback on what a deployment has really answered: before, during and after its turn is kept."""

import asyncio
import threading
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, update

from loreloop.http.generation import recording
from loreloop.learn.loop.collecting import said_of
from loreloop.learn.loop.reward.labels import labels_of
from loreloop.protocol.episodes import Turn
from loreloop.protocol.feedback import Feedback
from loreloop.store import feedback, turn_removal, turns
from loreloop.store.turn_tables import TURNS
from tests.http.recorded import Room, play_recorded
from tests.store.place import write_now


async def thumb(room: Room, target_id: str, status: int = 200, key: str | None = None, **fields: Any) -> dict[str, Any]:
    body = {"target_id": target_id, "metric": "thumb", "value": True} | fields
    answer: dict[str, Any] = await room.loop("POST", "/feedback", status, key, json=body)
    return answer


async def said(room: Room, name: str = "bot") -> list[dict[str, Any]]:
    return list((await room.loop("GET", f"/deployments/{name}/feedback"))["feedback"])


async def fates(room: Room) -> list[str]:
    return [turn["fate"] for turn in await room.turns()]


def test_feedback_makes_a_turn_trainable_and_a_retraction_has_it_wait_again() -> None:
    async def scene(room: Room) -> None:
        answer = await room.ask(user="ann")
        assert await fates(room) == ["waiting"]
        given = await thumb(room, answer.id, who="ann")
        assert (given["turn"], given["deployment"]) == ("kept", "bot")
        assert await fates(room) == ["trainable"]
        await room.loop("DELETE", f"/feedback/{given['id']}")
        assert await fates(room) == ["waiting"]

    play_recorded(scene)


def test_a_turn_of_which_nothing_stands_any_more_waits_again() -> None:
    """Who has changed an opinion and takes that back has none: what was said first does not count again."""

    async def scene(room: Room) -> None:
        answer, other = await room.ask(), await room.ask()
        await room.turns()
        for target, metric, values in ((answer.id, "thumb", (True, False)), (answer.episode_id, "accepted", (1, 0))):
            for value in values:
                given = await thumb(room, target, metric=metric, value=bool(value), who="ann")
            await room.loop("DELETE", f"/feedback/{given['id']}")
            assert await fates(room) == ["waiting", "waiting"]
        # Nor does the first answer have a friend once somebody prefers the other one.
        await thumb(room, answer.id, metric="preference", value=other.id, who="ann")
        await thumb(room, other.id, metric="preference", value=answer.id, who="ann")
        found = {turn["id"]: turn["fate"] for turn in await room.turns()}
        assert found == {answer.id: "waiting", other.id: "trainable"}

    play_recorded(scene)


def test_who_preferred_the_one_and_then_the_other_speaks_of_the_first_again_when_that_is_deleted() -> None:
    """Both answers are of other persons. With the one goes what was said of it, as if nobody had ever said it."""

    async def scene(room: Room) -> None:
        kept, going = await room.ask(user="ann"), await room.ask(user="bob")
        await room.turns()
        await thumb(room, kept.id, metric="preference", value=going.id, who="cid")
        await thumb(room, going.id, metric="preference", value=kept.id, who="cid")
        assert {turn["id"]: turn["fate"] for turn in await room.turns()} == {kept.id: "waiting", going.id: "trainable"}
        await room.loop("DELETE", "/persons/bob")
        (left,) = await said(room)
        assert (left["target_id"], left["retracted"]) == (kept.id, False)
        assert await fates(room) == ["trainable"]

    play_recorded(scene)


def test_so_it_is_where_the_other_one_expires() -> None:
    async def scene(room: Room) -> None:
        kept, going = await room.ask(user="ann"), await room.ask(user="bob")
        await room.turns()
        await thumb(room, kept.id, metric="preference", value=going.id, who="cid")
        await thumb(room, going.id, metric="preference", value=kept.id, who="cid")
        store = room.site.services.store
        write_now(store, expire, going.id)
        assert {turn["id"]: turn["fate"] for turn in await room.turns()} == {kept.id: "trainable", going.id: "expired"}

    play_recorded(scene)


def expire(connection: Connection, turn_id: str) -> None:
    """As if a turn's days were over."""
    connection.execute(update(TURNS).where(TURNS.c.id == turn_id).values(created=0.0))
    turn_removal.sweep(connection, 40 * turn_removal.DAY_SECONDS)


def test_feedback_is_taken_before_its_turn_is_durable() -> None:
    async def scene(room: Room) -> None:
        kept = threading.Event()
        blocked = asyncio.get_running_loop().run_in_executor(None, _hold_writer, room, kept)
        try:
            answer = await room.ask()
            # The one writer is busy: what is asked for now waits in line behind it, the turn as well as the feedback.
            given = asyncio.ensure_future(thumb(room, answer.id))
            whole = asyncio.ensure_future(thumb(room, answer.episode_id, metric="accepted"))
            await asyncio.sleep(0.02)
            assert room.site.services.recorder.whereabouts(answer.id) == "pending"
        finally:
            kept.set()
        await blocked
        assert (await given)["turn"] == (await whole)["turn"] == "pending"
        assert (await whole)["level"] == "episode"
        assert await fates(room) == ["trainable"]

    play_recorded(scene)


def _hold_writer(room: Room, until: threading.Event) -> None:
    room.site.office.store.write_and_wait(lambda connection: until.wait(10))


@pytest.mark.parametrize("who_is_kept", ["turn", "episode"])
def test_a_turn_that_comes_after_its_feedback_knows_of_it(who_is_kept: str) -> None:
    async def scene(room: Room) -> None:
        room.keep_turns_late()
        answer = await room.ask()
        given = await thumb(room, answer.id if who_is_kept == "turn" else answer.episode_id)
        assert given["turn"] == "pending"
        assert "kept already" in given["note"]
        assert await fates(room) == ["trainable"]

    play_recorded(scene)


def test_a_dropped_turn_is_said_to_be_so() -> None:
    async def scene(room: Room) -> None:
        recorder = room.site.services.recorder
        recorder.bounds = type(recorder.bounds)(turns=0)
        answer = await room.ask()
        assert (await thumb(room, answer.id))["turn"] == "dropped"
        recorder.bounds = type(recorder.bounds)()
        await thumb(room, answer.id, who="bob")
        assert len(await said(room)) == 2
        assert "trainable" not in await fates(room)

    play_recorded(scene)


def test_what_is_dropped_in_the_store_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(room: Room) -> None:
        monkeypatch.setattr(recording, "MOST_BYTES", 1)
        answer = await room.ask()
        await room.turns()
        assert (await thumb(room, answer.id))["turn"] == "dropped"

    play_recorded(scene)


def test_feedback_goes_with_its_turn() -> None:
    async def scene(room: Room) -> None:
        answer = await room.ask()
        await thumb(room, answer.id, why="said in confidence")
        await room.turns()
        store = room.site.office.store

        def age(connection: Connection) -> None:
            connection.execute(update(TURNS).values(created=1.0))
            while turn_removal.sweep(connection, 1e10):
                pass

        write_now(store, age)
        assert await said(room) == []
        assert "is gone" in (await thumb(room, answer.id, 410))["error"]["message"]

    play_recorded(scene)


def test_what_is_not_recorded_is_told_from_what_is_unknown() -> None:
    async def scene(room: Room) -> None:
        await room.deploy("quiet", record=False)
        answer = await room.ask(model="quiet")
        assert "'quiet', which does not record" in (await thumb(room, answer.id, 409))["error"]["message"]
        base = await room.ask(model="fake")
        for id in (base.id, "chatcmpl-nothing", answer.id[:-1]):
            assert "not an id of this server's" in (await thumb(room, id, 404))["error"]["message"]
        stranger = room.site.new_key("feedback")
        assert "not an id" in (await thumb(room, answer.id, 404, stranger))["error"]["message"]

    play_recorded(scene)


def test_every_sample_of_a_request_is_judged_by_itself() -> None:
    async def scene(room: Room) -> None:
        answer = await room.ask(n=2)
        await room.turns()
        better = f"{answer.id}:1"
        given = await thumb(room, better, metric="preference", value=answer.id)
        assert given["value"] == answer.id
        assert sorted(await fates(room)) == ["trainable", "waiting"]

    play_recorded(scene)


def test_an_agent_cannot_mark_itself_and_its_owner_can() -> None:
    async def scene(room: Room) -> None:
        agent = room.site.new_key("infer")
        answer = await room.ask(key=agent)
        assert "needs the scope 'feedback'" in (await thumb(room, answer.id, 403, agent))["error"]["message"]
        await thumb(room, answer.id, key=room.site.new_key("feedback:bot"))
        both = room.site.new_key("infer", "feedback")
        await thumb(room, answer.id, 404, both)
        own = await room.ask(key=both)
        await thumb(room, own.id, key=both)

    play_recorded(scene)


def test_an_episode_id_that_two_keys_chose_is_each_one_s_own() -> None:
    async def scene(room: Room) -> None:
        one, two = (room.site.new_key("infer", "feedback") for _ in range(2))
        await room.ask(key=one, extra_body={"episode_id": "mine"})
        assert (await thumb(room, "mine", key=one))["level"] == "episode"
        await thumb(room, "mine", 404, two)
        await room.ask(key=two, extra_body={"episode_id": "mine"})
        await room.turns()
        assert "several episodes 'mine'" in (await thumb(room, "mine", 409))["error"]["message"]
        askers = [(await thumb(room, "mine", key=key))["asker"] for key in (one, two)]
        assert len({*askers}) == 2

    play_recorded(scene)


def test_a_statement_reaches_no_stranger_s_episode_of_the_same_id() -> None:
    async def scene(room: Room) -> None:
        victim, thief = (room.site.new_key("infer", "feedback") for _ in range(2))
        before = await room.ask(key=victim, extra_body={"episode_id": "mine"})
        await room.turns()
        await thumb(room, "mine", key=victim)
        # Whoever guesses the id has an episode of their own, of which nobody has said anything.
        after = await room.ask(key=thief, extra_body={"episode_id": "mine"})
        fates = {turn["id"]: turn["fate"] for turn in await room.turns()}
        assert fates == {before.id: "trainable", after.id: "waiting"}
        on_thiefs = [await thumb(room, "mine", key=thief, value=value) for value in (False, True)]
        on_victims, *_ = [Feedback(**each) for each in await said(room)]
        turns = {turn["id"]: msgspec.convert(turn, Turn) for turn in await room.turns()}
        assert set(said_of(turns, [on_victims])) == {before.id}
        (label,) = labels_of(turns.values(), [on_victims]).events
        assert label.id == on_victims.id
        await room.loop("DELETE", f"/feedback/{on_thiefs[1]['id']}", key=thief)
        fates = {turn["id"]: turn["fate"] for turn in await room.turns()}
        assert fates[before.id] == "trainable"

    play_recorded(scene)


def test_what_was_said_of_an_episode_ends_with_its_last_turn() -> None:
    async def scene(room: Room) -> None:
        for _ in range(2):
            answer = await room.ask(extra_body={"episode_id": "mine"})
            await room.turns()
        await thumb(room, "mine", metric="comment", value="said in confidence")
        store, (old, new) = room.site.office.store, await room.turns()

        def age(connection: Connection, id: str) -> None:
            connection.execute(update(TURNS).where(TURNS.c.id == id).values(created=1.0))
            while turn_removal.sweep(connection, new["created"]):
                pass

        write_now(store, age, old["id"])
        assert len(await said(room)) == 1
        write_now(store, age, new["id"])
        assert await said(room) == []
        assert answer.id == new["id"]
        assert "is gone" in (await thumb(room, "mine", 410))["error"]["message"]
        # What comes later under the id is another matter, of which nothing was said.
        again = await room.ask(extra_body={"episode_id": "mine"})
        assert {turn["id"]: turn["fate"] for turn in await room.turns()}[again.id] == "waiting"

    play_recorded(scene)


def test_what_was_said_of_a_deployment_that_is_gone_does_not_come_to_the_next_of_its_name() -> None:
    async def scene(room: Room) -> None:
        room.keep_turns_late()
        answer = await room.ask()
        await room.loop("DELETE", "/deployments/bot")
        await room.deploy()
        for target in (answer.id, answer.episode_id):
            assert (await thumb(room, target, metric="accepted"))["turn"] == "pending"
        assert await room.turns() == []
        assert await said(room) == []

    play_recorded(scene)


def test_texts_of_feedback_are_redacted_as_turns_are() -> None:
    async def scene(room: Room) -> None:
        await room.deploy("careful", redact=["email", "phone"])
        answer = await room.ask(model="careful")
        text = "write to ann@mail.example, or +49 30 1234567"
        about = {"why": text, "tags": {"note": text, "golden": "1"}, "who": "ann@mail.example"}
        for metric in ("comment", "demonstration"):
            given = await thumb(room, answer.id, metric=metric, value=text, id=f"chosen-{metric}", **about)
            left = "write to [email], or [phone]"
            assert (given["value"], given["why"], given["tags"]["note"]) == (left, left, left)
            assert (given["who"], given["tags"]["golden"]) == ("ann@mail.example", "1")
            again = await thumb(room, answer.id, metric=metric, value=text, id=f"chosen-{metric}", **about)
            assert again["number"] == given["number"]
        kept = room.site.services.store.read(feedback.about, [answer.id])
        assert not [each for each in kept if "mail.example" in f"{each.value}{each.why}{each.tags}"]
        await room.turns("careful")
        other = await room.ask(model="careful")
        await room.turns("careful")
        preferred = await thumb(room, answer.id, metric="preference", value=other.id, why=text)
        assert (preferred["value"], preferred["why"]) == (other.id, left)

    play_recorded(scene)


def test_late_feedback_on_a_used_turn_is_taken() -> None:
    async def scene(room: Room) -> None:
        answer = await room.ask()
        await room.turns()
        await room.loop("POST", "/deployments/bot/used", json={"candidate": "c1", "turns": [answer.id]})
        assert (await thumb(room, answer.id))["turn"] == "kept"
        assert await fates(room) == ["used"]

    play_recorded(scene)


def test_what_a_deployment_heard_goes_with_it() -> None:
    async def scene(room: Room) -> None:
        answer = await room.ask()
        await thumb(room, answer.id)
        await thumb(room, answer.episode_id, metric="accepted")
        await room.turns()
        await room.loop("DELETE", "/deployments/bot")
        assert room.site.services.store.read(feedback.about, [answer.id, answer.episode_id]) == []
        assert room.site.services.store.read(turns.find, answer.id) is None
        await room.deploy()

    play_recorded(scene)

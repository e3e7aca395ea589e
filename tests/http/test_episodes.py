"""Episodes and marks by the public face: ids that are passed back, arms that stay, side turns, consent, fates."""

from __future__ import annotations

from typing import Any

import pytest

from tests.http.recorded import ASKING, Room, play_recorded
from tests.http.test_deployed_names import checkpoint

HEADER = "x-loreloop-revision"


async def raw(room: Room, **fields: Any) -> Any:
    headers = fields.pop("headers", {})
    body = {"model": "bot", "messages": ASKING, "max_tokens": 20} | fields
    return await room.site.client.post("http://site/v1/chat/completions", json=body, headers=headers)


def test_an_episode_goes_on_where_its_id_comes_back() -> None:
    async def scene(room: Room) -> None:
        first = await room.ask("one")
        second = await room.ask("two", extra_body={"episode_id": first.episode_id})
        third = await raw(room, headers={"x-episode-id": first.episode_id})
        fourth = await room.ask("four", metadata={"episode_id": first.episode_id})
        assert third.headers["x-episode-id"] == first.episode_id == second.episode_id == fourth.episode_id
        assert (await room.ask("other")).episode_id != first.episode_id
        await room.turns()
        found = await room.loop("GET", f"/episodes/{first.episode_id}")
        assert [turn["id"] for turn in found["turns"]] == [first.id, second.id, third.json()["id"], fourth.id]
        await room.loop("GET", "/episodes/nothing", 404)
        stranger = room.site.new_key("infer")
        await room.loop("GET", f"/episodes/{first.episode_id}", 404, key=stranger)

    play_recorded(scene)


@pytest.mark.parametrize(
    "marks",
    [
        {"episode_id": "no spaces"},
        {"episode_id": "a" * 201},
        {"metadata": {"episode_id": "a"}, "episode_id": "b"},
        {"headers": {"x-consent": "perhaps"}},
        {"metadata": {"side_turn": "sideways"}},
        {"headers": {"x-consent": "yes"}, "metadata": {"consent": "no"}},
        {"user": "u" * 501},
    ],
)
def test_marks_that_mean_nothing_are_refused(marks: dict[str, Any]) -> None:
    async def scene(room: Room) -> None:
        refused = await raw(room, **marks)
        assert refused.status_code == 400, refused.text
        assert await room.turns() == []

    play_recorded(scene)


def test_marks_decide_what_becomes_of_a_turn() -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        plain = (await raw(room)).json()["id"]
        side = (await raw(room, headers={"x-side-turn": "1"})).json()["id"]
        without = (await raw(room, metadata={"consent": "no"})).json()["id"]
        turns = {turn["id"]: turn for turn in await room.turns()}
        assert {turns[i]["fate"] for i in (plain,)} == {"waiting"}
        assert (turns[side]["fate"], turns[without]["fate"]) == ("side", "no_consent")
        # What nobody may learn from is told without what could be learned.
        assert (turns[without]["messages"], turns[without]["answer"], turns[without]["tokens"]) == ([], {}, [])
        assert [turn["id"] for turn in await room.turns(fate="side")] == [side]
        assert (await room.loop("POST", f"/turns/{plain}", json={"side": True}))["fate"] == "side"
        assert (await room.turns())[-1]["id"] == plain  # a reader of the feed hears of it
        await room.loop("POST", f"/turns/{plain}", 400, json={"sideways": True})
        await room.loop("POST", "/turns/chatcmpl-nothing", 404, json={"side": True})
        counts = await room.loop("GET", "/deployments/bot/turns/counts")
        assert {fate: n for fate, n in counts["fates"].items() if n} == {"side": 2, "no_consent": 1}
        assert counts["recording"]
        assert counts["bytes"] > 0

    play_recorded(scene)


def test_a_deployment_may_ask_for_consent_first() -> None:
    async def scene(room: Room) -> None:
        await room.deploy(consent=False)
        room.says("yes")
        silent, agreed = (await raw(room)).json()["id"], (await raw(room, headers={"x-consent": "yes"})).json()["id"]
        assert {turn["id"]: turn["fate"] for turn in await room.turns()} == {silent: "no_consent", agreed: "waiting"}

    play_recorded(scene)


def test_the_arm_of_a_canary_stays_with_episode_and_person() -> None:
    async def scene(room: Room) -> None:
        path = await checkpoint(room.site, "a", await room.site.model())
        await room.deploy(canary=path, canary_percent=50)
        room.says("yes")
        arms: dict[str, set[str]] = {}
        for user in ["ann", "bob", "eve", *[None] * 12]:
            body = {"user": user} if user else {}
            first = await raw(room, **body)
            episode_id = first.json()["episode_id"]
            # The id alone is enough, as an agent passes it back that does not know the user.
            again = [await raw(room, episode_id=episode_id), await raw(room, episode_id=episode_id, **body)]
            new = [await raw(room, **body)] if user else []
            revisions = {answer.headers[HEADER] for answer in (first, *again, *new)}
            assert len(revisions) == 1, user
            arms[episode_id] = revisions
        assert len({*map(tuple, arms.values())}) == 2, "fifteen draws of one half are all alike once in 16,000 times"
        turns = await room.turns(limit=1000)
        assert {(turn["arm"], turn["revision"]) for turn in turns} == {("main", None), ("canary", path)}
        assert {turn["fate"] for turn in turns} == {"waiting"}

    play_recorded(scene)


def test_an_episode_of_two_revisions_is_mixed_and_counted_once() -> None:
    async def scene(room: Room) -> None:
        room.says("yes")
        first = (await raw(room)).json()
        await room.deploy(target=await checkpoint(room.site, "a", await room.site.model()))
        for _ in range(2):
            await raw(room, episode_id=first["episode_id"])
        other = (await raw(room)).json()["id"]
        fates = {turn["id"]: turn["fate"] for turn in await room.turns()}
        assert fates.pop(other) == "waiting"
        assert [*fates.values()] == ["mixed"] * 3
        assert (await room.loop("GET", "/deployments/bot/turns/counts"))["mixed_episodes"] == 1

    play_recorded(scene)


def test_a_candidate_that_was_trained_on_turns_is_noted() -> None:
    async def scene(room: Room) -> None:
        ids = [(await room.ask("yes", user="ann")).id for _ in range(2)]
        await room.turns()
        used = {"candidate": "c-1", "turns": [ids[0], "chatcmpl-nothing"]}
        told = await room.loop("POST", "/deployments/bot/used", json=used)
        assert told == {"candidate": "c-1", "used": 1, "unknown": ["chatcmpl-nothing"], "withdrawn": []}
        turns = {turn["id"]: (turn["fate"], turn["candidate"]) for turn in await room.turns()}
        assert turns == {ids[0]: ("used", "c-1"), ids[1]: ("waiting", None)}
        await room.loop("POST", "/deployments/nothing/used", 404, json=used)
        await room.loop("POST", "/deployments/bot/used", 400, json={"candidate": "", "turns": []})

    play_recorded(scene)


def test_turns_are_read_by_who_may() -> None:
    async def scene(room: Room) -> None:
        asking, other, train = (room.site.new_key(scope) for scope in ("infer:bot", "infer", "train"))
        answer = await room.ask("yes", key=asking)
        await room.turns()
        assert (await room.loop("GET", f"/turns/{answer.id}", key=asking))["id"] == answer.id
        await room.loop("GET", f"/turns/{answer.id}", 404, key=other)
        # The bare base is nobody's, so its turns are for admin keys alone.
        await room.loop("GET", "/deployments/bot/turns", 404, key=train)
        await room.loop("GET", "/deployments/bot/turns", 403, key=asking)
        for query in ({"fate": "lost"}, {"after": "x"}, {"limit": "0"}):
            await room.loop("GET", "/deployments/bot/turns", 400, params=query)

    play_recorded(scene)


def test_the_feed_goes_on_behind_a_number() -> None:
    async def scene(room: Room) -> None:
        ids = [(await room.ask("yes", user=user)).id for user in ("ann", "bob", "ann")]
        await room.turns()
        seen: list[str] = []
        after = 0
        while (page := await room.loop("GET", f"/deployments/bot/turns?limit=2&after={after}"))["turns"]:
            seen += [turn["id"] for turn in page["turns"]]
            after = page["next"]
        assert seen == ids
        assert page["next"] == after
        assert [turn["id"] for turn in await room.turns(user="ann")] == [ids[0], ids[2]]

    play_recorded(scene)

"""Feedback over its routes: every kind, who may give it, what is refused, retries, retractions and the feed."""

import asyncio

import pytest

from loreloop.http.loop import giving, rooms
from loreloop.store import feedback, keys
from tests.http.loop_rig import EPISODE, LOOP, OTHER_TURN, TURN, feed, give, know, refusal, set_up, turn
from tests.http.site import Scene, Site, play

KINDS = {
    "thumb": False,
    "score": 0.25,
    "demonstration": "The answer is 4.",
    "preference": OTHER_TURN,
    "accepted": True,
    "tool_ok": False,
    "comment": "Too long.",
    "verdict": -2.5,
}


def play_about(scene: Scene) -> None:
    async def whole(site: Site) -> None:
        set_up(site)
        await scene(site)

    play(whole, engine=False)


@pytest.mark.parametrize("metric", KINDS)
def test_every_kind_comes_back_in_the_feed_as_it_was_given(metric: str) -> None:
    async def scene(site: Site) -> None:
        about = {"source": "judge", "who": "grader-2", "why": "as the rubric says", "tags": {"run": "7"}}
        said = await give(site, metric=metric, value=KINDS[metric], **about)
        assert (said["turn"], said["note"]) == ("kept", None)
        (found,) = await feed(site)
        assert found == {name: said[name] for name in found}
        wanted = {"metric": metric, "value": KINDS[metric], "level": "inference", "retracted": False, "overrides": None}
        assert {name: found[name] for name in (*wanted, *about)} == wanted | about

    play_about(scene)


def test_code_speaks_where_only_code_finds_out_and_humans_elsewhere() -> None:
    async def scene(site: Site) -> None:
        assert (await give(site, metric="tool_ok"))["source"] == "code"
        assert (await give(site, metric="verdict", value=1))["source"] == "code"
        assert (await give(site))["source"] == "human"

    play_about(scene)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"value": 1}, "takes true or false, not 1"),
        ({"value": "yes"}, "takes true or false"),
        ({"metric": "score", "value": 1.5}, "takes a number from 0 to 1"),
        ({"metric": "score", "value": True}, "takes a number from 0 to 1"),
        ({"metric": "verdict", "value": 1e300}, "between -1e+09 and 1e+09"),
        ({"metric": "comment", "value": ""}, "a text of 1 to"),
        ({"metric": "demonstration", "value": 4}, "the corrected answer"),
        ({"metric": "preference", "value": TURN}, "another one of the deployment 'bot'"),
        ({"metric": "preference", "value": "chatcmpl-foreign"}, "another one of the deployment 'bot'"),
        ({"metric": "preference", "value": EPISODE}, "another one of the deployment 'bot'"),
        ({"metric": "mood"}, "has no metric 'mood'; it has accepted, comment"),
        ({"metric": "demonstration", "value": "4", "target_id": EPISODE}, "is about a turn"),
        ({"overrides": "nothing"}, "names 'nothing', which is no statement"),
        ({"id": "short"}, "id"),
        ({"id": "long-enough\n"}, "id"),
        ({"source": "nobody"}, "source"),
        ({"tags": {"a": 1}}, "tags"),
        ({"mood": 1}, "The field `mood` is not served here"),
        ({"why": "x" * 4001}, "why"),
        ({"value": None}, "value"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_what_is_wrong_is_named(fields: dict[str, object], words: str) -> None:
    async def scene(site: Site) -> None:
        assert words in await refusal(site, **fields)
        assert await feed(site) == []

    play_about(scene)


def test_an_episode_is_judged_as_a_whole() -> None:
    async def scene(site: Site) -> None:
        assert (await give(site, target_id=EPISODE, metric="accepted"))["level"] == "episode"

    play_about(scene)


def test_what_became_of_the_turn_is_said() -> None:
    async def scene(site: Site) -> None:
        know(site, turn("a", state="pending"), turn("b", state="dropped"), turn("c", state="expired"))
        assert "kept already" in (await give(site, target_id="a"))["note"]
        dropped = await give(site, target_id="b")
        assert (dropped["turn"], dropped["note"]) == ("dropped", giving.NOTES["dropped"])
        assert "is gone" in await refusal(site, status=410, target_id="c")
        assert "not an id of this server's" in await refusal(site, status=404, target_id="d")
        assert [each["target_id"] for each in await feed(site)] == ["a", "b"]

    play_about(scene)


@pytest.mark.parametrize(
    ("scopes", "status"),
    [
        (("infer",), 403),
        (("train",), 403),
        (("infer:bot",), 403),
        (("infer", "feedback:bot"), 200),
        (("feedback:bot",), 200),
        (("feedback:elsewhere",), 404),
        (("feedback",), 404),  # of the deployment it knows nothing
        (("admin",), 200),
    ],
)
def test_who_may_ask_may_not_thereby_judge(scopes: tuple[str, ...], status: int) -> None:
    async def scene(site: Site) -> None:
        async with site.client_with(site.new_key(*scopes)) as client:
            await give(site, client, status)
            answer = await client.get(f"{LOOP}/deployments/bot/feedback")
            assert answer.status_code == (200 if "admin" in scopes else 404 if "train" in scopes else 403)
        assert len(await feed(site)) == (status == 200)

    play_about(scene)


def test_a_key_may_judge_the_answers_that_it_asked_for_with_the_scope() -> None:
    async def scene(site: Site) -> None:
        secret = site.new_key("infer", "feedback")
        async with site.client_with(secret) as client:
            key_id = (await give(site))["giver"]
            await give(site, client, 404)
            know(site, turn(TURN, key_id=_id_of(site, secret)))
            assert (await give(site, client))["giver"] != key_id

    play_about(scene)


def _id_of(site: Site, secret: str) -> str:
    found = site.services.store.read(keys.find, secret, 0.0)
    assert found is not None
    return found.id


def test_a_retry_changes_nothing_and_a_taken_id_is_refused() -> None:
    async def scene(site: Site) -> None:
        first = await give(site, id="my-own-id-1")
        assert await give(site, id="my-own-id-1") == first
        assert "stands for other feedback" in await refusal(site, status=409, id="my-own-id-1", value=False)
        assert len(await feed(site)) == 1

    play_about(scene)


def test_an_id_is_its_givers_own() -> None:
    """Whoever was there first with an id keeps nobody else from it, and both are found by it."""

    async def scene(site: Site) -> None:
        async with (
            site.client_with(site.new_key("feedback:bot")) as squatter,
            site.client_with(site.new_key("feedback:bot")) as other,
        ):
            first = await give(site, squatter, id="order-4711", value=False)
            second = await give(site, other, id="order-4711")
            assert first["id"] == "order-4711"
            assert second["id"].startswith("order-4711@")
            assert await give(site, other, id="order-4711") == second
            assert "stands for other feedback" in await refusal(site, other, 409, id="order-4711", why="no")
            assert [one["id"] for one in await feed(site)] == [first["id"], second["id"]]
            for id in ("order-4711", second["id"]):
                assert (await other.get(f"{LOOP}/feedback/{id}")).json()["id"] == second["id"]
            again = await give(site, other, id="order-4712", value=False, overrides="order-4711")
            assert again["overrides"] == second["id"]
            assert (await squatter.get(f"{LOOP}/feedback/order-4711")).json()["counts"] is True
            assert (await squatter.delete(f"{LOOP}/feedback/order-4711")).status_code == 200
            assert [one["retracted"] for one in await feed(site)] == [False, False, True]
            # Nor does what went since make room for a second one of the same giver.
            assert (await give(site, other, id="order-4711"))["id"] == second["id"]

    play_about(scene)


def test_many_retries_at_once_are_one() -> None:
    async def scene(site: Site) -> None:
        answers = await asyncio.gather(*(give(site, id="the-same-id") for _ in range(20)))
        assert len({answer["number"] for answer in answers}) == 1
        assert len(await feed(site)) == 1

    play_about(scene)


def test_who_repeats_an_opinion_says_nothing_new_and_who_changes_it_overrides() -> None:
    async def scene(site: Site) -> None:
        first = await give(site, who="ann")
        assert (await give(site, who="ann"))["id"] == first["id"]
        second = await give(site, who="ann", value=False)
        assert second["overrides"] == first["id"]
        assert (await give(site, who="bob"))["overrides"] is None
        third = await give(site, who="ann")
        assert third["id"] != first["id"]
        assert third["overrides"] == second["id"]
        assert await counting(site) == {third["id"]} | {each["id"] for each in await feed(site) if each["who"] == "bob"}

    play_about(scene)


async def counting(site: Site) -> set[str]:
    """The ids of what counts, as the docs tell readers of the feed to find them."""
    said = await feed(site)
    overridden = {each["overrides"] for each in said}
    return {each["id"] for each in said if not each["retracted"] and each["id"] not in overridden}


def test_a_retraction_comes_behind_everything_and_brings_nothing_back() -> None:
    async def scene(site: Site) -> None:
        first = await give(site, who="ann", id="first-one")
        second = await give(site, who="ann", value=False)
        answer = await site.client.delete(f"{LOOP}/feedback/{second['id']}")
        assert answer.json()["retracted"] is True
        assert answer.json()["number"] > second["number"]
        assert (await site.client.delete(f"{LOOP}/feedback/{second['id']}")).json() == answer.json()
        assert await feed(site, after=second["number"]) == [answer.json()]
        assert await counting(site) == set()
        # A retry that comes late does not take a retraction back.
        assert (await give(site, who="ann", id="first-one"))["number"] == first["number"]
        assert await counting(site) == set()
        last = await give(site, who="ann")
        assert await counting(site) == {last["id"]}

    play_about(scene)


def test_a_person_overrides_a_judge_and_not_the_other_way_round() -> None:
    async def scene(site: Site) -> None:
        async with site.client_with(site.new_key("feedback:bot")) as client:
            judged = await give(site, client, metric="score", value=0.1, source="judge", who="j")
            human = {"metric": "score", "value": 0.9, "who": "ann"}
            own = await give(site, client, **human)
            said = await give(site, client, **human | {"value": 0.8}, overrides=judged["id"], why="it was right")
            assert said["overrides"] == judged["id"]
            assert await counting(site) == {said["id"]}
            assert [each["id"] for each in await feed(site) if each["retracted"]] == [own["id"]]
            weak = {"metric": "score", "value": 0.2, "source": "judge", "who": "k", "overrides": said["id"]}
            assert "this one is of the source judge" in await refusal(site, client, **weak)
            gone = {"metric": "score", "value": 0.3, "source": "code", "who": "c", "overrides": judged["id"]}
            assert "no longer counts" in await refusal(site, client, **gone)

    play_about(scene)


def test_a_dry_run_checks_and_keeps_nothing() -> None:
    async def scene(site: Site) -> None:
        assert (await give(site, dryrun=True))["number"] == 0
        await refusal(site, dryrun=True, value=1)
        assert await feed(site) == []

    play_about(scene)


def test_a_statement_is_seen_and_retracted_by_its_giver_and_by_admins_alone() -> None:
    async def scene(site: Site) -> None:
        async with (
            site.client_with(site.new_key("feedback:bot")) as giver,
            site.client_with(site.new_key("feedback:bot")) as stranger,
        ):
            at = f"{LOOP}/feedback/{(await give(site, giver))['id']}"
            assert [(await client.get(at)).status_code for client in (giver, stranger, site.client)] == [200, 404, 200]
            assert (await giver.get(at)).json()["counts"] is True
            assert (await stranger.delete(at)).status_code == 404
            assert (await giver.delete(at)).status_code == 200
            assert (await giver.get(at)).json()["counts"] is False

    play_about(scene)


def test_the_feed_comes_in_pages() -> None:
    async def scene(site: Site) -> None:
        for number in range(5):
            await give(site, who=f"p{number}")
        seen, after = [], 0
        while True:
            answer = await site.client.get(f"{LOOP}/deployments/bot/feedback", params={"after": after, "limit": 2})
            if not (page := answer.json())["feedback"]:
                break
            seen += [each["who"] for each in page["feedback"]]
            after = page["next"]
        assert seen == [f"p{number}" for number in range(5)]
        for wrong in ("x", "-1", "9" * 30):
            assert (await site.client.get(f"{LOOP}/deployments/bot/feedback?after={wrong}")).status_code == 400
        assert (await site.client.get(f"{LOOP}/deployments/nothing/feedback")).status_code == 404

    play_about(scene)


def test_one_person_s_flood_is_bounded_by_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        monkeypatch.setattr(giving, "OF_PERSON", giving.Rate(per_second=0.01, burst=3))
        for number in range(3):
            await give(site, who="ann", value=bool(number % 2))
        body = {"target_id": TURN, "metric": "thumb", "value": True, "who": "ann"}
        answer = await site.client.post(f"{LOOP}/feedback", json=body)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 50
        await give(site, who="bob")
        await give(site, who="ann", source="judge")

    play_about(scene)


def test_guessing_ids_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        monkeypatch.setattr(giving.Speaker, "rate", giving.Rate(per_second=0.01, burst=2))
        for status in (404, 404, 429):
            await give(site, status=status, target_id="chatcmpl-guess")

    play_about(scene)


@pytest.mark.parametrize("odd", ["\0", "\U0001f600", "a\nb", "'; DROP TABLE feedback; --", "<b>", "x" * 200])
def test_odd_words_come_back_as_they_were_said(odd: str) -> None:
    async def scene(site: Site) -> None:
        await give(site, who=odd, why=odd, tags={odd[:100]: odd}, metric="comment", value=odd)
        (found,) = await feed(site)
        assert [found[name] for name in ("who", "why", "value", "tags")] == [odd, odd, odd, {odd[:100]: odd}]

    play_about(scene)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"who": "\\ud800"}', b"[" * 5000, b'{"value": 1e999}'])
def test_what_is_no_statement_is_refused(body: bytes) -> None:
    async def scene(site: Site) -> None:
        assert (await site.client.post(f"{LOOP}/feedback", content=body)).status_code == 400
        assert (await site.client.post("http://site/feedback", content=body)).status_code == 400

    play_about(scene)


def test_one_person_s_statements_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        monkeypatch.setattr(rooms, "MOST_OF_PERSON", 4)
        for number in range(4):
            await give(site, who="ann", value=bool(number % 2))
        assert "4 statements of 'ann' by this key" in await refusal(site, status=413, who="ann")
        monkeypatch.setattr(rooms, "MOST_OF_KEY", 5)
        site.services.feedback.rooms.known.clear()
        await give(site, who="bob")
        assert "5 statements of this key" in await refusal(site, status=413, who="eve")

    play_about(scene)


def test_a_deployment_that_is_deleted_takes_its_feedback_along() -> None:
    async def scene(site: Site) -> None:
        secret = site.new_key("feedback:bot")
        await give(site)
        assert (await site.client.delete(f"{LOOP}/deployments/bot")).status_code == 200
        assert site.services.store.read(feedback.page, "bot", 0, 10).feedback == ()
        async with site.client_with(secret) as client:
            assert (await client.post(f"{LOOP}/feedback", json={})).status_code == 403

    play_about(scene)

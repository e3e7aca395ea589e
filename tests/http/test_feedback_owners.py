"""Tokens and links end with what they rest on, take back nothing that is another's, and are bounded as all else."""

import threading
import time
from typing import Any

import httpx
import pytest

from loreloop.http.loop import giving
from loreloop.store import deployments, feedback, keys, person_arms
from tests.http.loop_rig import EPISODE, LOOP, TURN, deploy, feed, give, know, set_up, turn
from tests.http.recorded import Room, play_recorded
from tests.http.site import Scene, Site, play
from tests.http.test_feedback_links import PAGE, post, token_body
from tests.store.place import write_now


def play_about(scene: Scene) -> None:
    async def whole(site: Site) -> None:
        set_up(site)
        await scene(site)

    play(whole, engine=False)


def key_id(site: Site, secret: str) -> str:
    found = site.services.store.read(keys.find, secret, 0.0)
    assert found is not None
    return found.id


async def token(client: httpx.AsyncClient, **fields: Any) -> str:
    made = await client.post(f"{LOOP}/feedback-tokens", json=token_body(**fields))
    assert made.status_code == 200, made.text
    return str(made.json()["token"])


async def link(client: httpx.AsyncClient, **fields: Any) -> str:
    made = await client.post(f"{LOOP}/feedback-links", json={"target_id": TURN, "metric": "thumb"} | fields)
    assert made.status_code == 200, made.text
    return str(made.json()["url"])


@pytest.mark.parametrize("scope", ["feedback", "feedback:mine", "admin"])
@pytest.mark.parametrize("heir", ["stranger", "same"])
def test_a_deleted_deployment_takes_its_tokens_and_links_along(scope: str, heir: str) -> None:
    async def scene(site: Site) -> None:
        secret = site.new_key(scope)
        owner = key_id(site, secret)
        deploy(site, "mine", owner)
        know(site, turn(TURN, "mine", owner))
        async with site.client_with(secret) as client, site.client_with(None) as public:
            page, address = await token(client, deployment="mine"), await link(client)
            assert (await post(public, page)).status_code == 200
            assert (await public.get(address)).status_code == 200
            write_now(site.office.store, deployments.remove, "mine")
            assert (await post(public, page)).status_code == 401
            deploy(site, "mine", owner if heir == "same" else site.office.key_id)
            refused = await post(public, page)
            assert (refused.status_code, "may not judge this deployment" in refused.text) == (401, True)
            for answer in (await public.get(address), await public.post(address, data={"value": "true"})):
                assert (answer.status_code, "its deployment deleted" in answer.text) == (403, True)
        assert await feed(site, name="mine") == []

    play_about(scene)


@pytest.mark.parametrize("way", ["revoked", "expired", "withdrawn"])
def test_a_token_and_a_link_end_with_what_their_key_may(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        secret = site.new_key("feedback:bot")
        if way == "expired":
            expiring = write_now(site.office.store, keys.create, "short", ("feedback:bot",), 0.0, time.time() + 3600)
            secret = expiring.secret
        async with site.client_with(secret) as client, site.client_with(None) as public:
            page, address = await token(client), await link(client)
            assert (await post(public, page)).status_code == 200
            if way == "revoked":
                write_now(site.office.store, keys.revoke, key_id(site, secret), 1.0)
            elif way == "withdrawn":
                write_now(site.office.store, keys.withdraw, "feedback:bot")
            else:
                monkeypatch.setattr("loreloop.http.loop.speakers.now", lambda: time.time() + 3601)
                monkeypatch.setattr("loreloop.http.loop.links.now", lambda: time.time() + 3601)
            assert (await post(public, page)).status_code == 401
            assert (await public.post(address, data={"value": "true"})).status_code in (403, 404)
        assert len(await feed(site)) == 1

    play_about(scene)


def test_a_token_ends_with_the_ownership_of_the_key_that_made_it() -> None:
    async def scene(site: Site) -> None:
        one, two = site.new_key("feedback"), site.new_key("feedback")
        deploy(site, "mine", key_id(site, one))
        know(site, turn(TURN, "mine"))
        async with site.client_with(one) as client, site.client_with(two) as other, site.client_with(None) as public:
            page = await token(client, deployment="mine")
            assert (await other.post(f"{LOOP}/feedback-tokens", json=token_body(deployment="mine"))).status_code == 404
            site.services.store.read(deployments.find, "mine")

            def hand_over(connection: Any) -> None:
                connection.exec_driver_sql(
                    "UPDATE deployments SET key_id = ? WHERE name = 'mine'", (key_id(site, two),)
                )

            write_now(site.office.store, hand_over)
            assert (await post(public, page)).status_code == 401

    play_about(scene)


def test_a_token_of_an_admin_key_has_nothing_of_its_powers() -> None:
    async def scene(site: Site) -> None:
        page = await token(site.client)
        by_key = await give(site, who="ann")
        elsewhere = await token(site.client, deployment="elsewhere")
        async with site.client_with(None) as public:
            by_page = (await post(public, page, who="ann")).json()
            over = await post(public, page, who="eve", value=False, overrides=by_key["id"])
            assert (over.status_code, "nobody's an equal's" in over.text) == (400, True)
            for bearer, id, status in (
                (page, by_key["id"], 404),
                (elsewhere, by_page["id"], 404),
                (page, by_page["id"], 200),
            ):
                headers = {"authorization": f"Bearer {bearer}", "origin": PAGE}
                answer = await public.delete(f"{LOOP}/feedback/{id}", headers=headers)
                assert answer.status_code == status, answer.text

    play_about(scene)


def test_taking_back_and_asking_are_bounded_as_giving_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        page = await token(site.client, per_minute=6)
        async with site.client_with(None) as public:
            headers = {"authorization": f"Bearer {page}", "origin": PAGE}
            codes = [
                (await public.delete(f"{LOOP}/feedback/guess-{number}", headers=headers)).status_code
                for number in range(3)
            ]
            assert codes == [404, 429, 429]
        monkeypatch.setattr(giving.Speaker, "rate", giving.Rate(per_second=0.001, burst=1))
        for method, path, body in (
            ("DELETE", "/feedback/guess", None),
            ("GET", "/feedback/guess", None),
            ("POST", "/feedback-links", {"target_id": "guess", "metric": "thumb"}),
            ("POST", "/feedback-tokens", token_body(deployment="guess")),
        ):
            site.services.feedback.rates.buckets.clear()
            codes = [(await site.client.request(method, LOOP + path, json=body)).status_code for _ in range(2)]
            assert codes == [404, 429], path

    play_about(scene)


def test_what_may_take_long_is_read_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        await give(site)
        await give(site, target_id=EPISODE)
        here, read_by = threading.get_ident(), list[tuple[str, bool]]()
        for module, name in ((feedback, "page"), (feedback, "kept_of"), (person_arms, "keys_of_user")):
            usual = getattr(module, name)

            def watched(*given: Any, usual: Any = usual, name: str = name) -> Any:
                read_by.append((name, threading.get_ident() == here))
                return usual(*given)

            monkeypatch.setattr(module, name, watched)
        assert len(await feed(site)) == 2
        site.services.feedback.rooms.known.clear()
        await give(site, who="ann")
        await site.client.get(f"{LOOP}/deployments/bot/persons/ann")
        assert {name for name, _ in read_by} == {"page", "kept_of", "keys_of_user"}
        assert not [name for name, is_here in read_by if is_here]

    play_about(scene)


def test_what_behaviour_says_counts_once_whichever_operators_send_it() -> None:
    async def scene(room: Room) -> None:
        turn = await room.ask("yes", user="ann")
        await room.turns()
        later, sign = time.time() + 600.0, {"metric": "accepted", "value": False, "source": "implicit", "who": "ann"}
        for name in ("root", "eve"):
            made = write_now(room.site.services.store, keys.create, name, ("admin",), time.time(), later)
            body = sign | {"target_id": turn.id, "id": f"implicit-rephrase-{turn.id}"}
            for more in ({}, {"id": None}):  # an id of the sender's own makes no second voice of it either
                said = await room.loop("POST", "/feedback", key=made.secret, json=body | more)
                assert said["giver"] == "operator:"
        (one,) = (await room.loop("GET", "/deployments/bot/feedback"))["feedback"]
        assert one["id"] == f"implicit-rephrase-{turn.id}"

    play_recorded(scene)

"""The routes of deployments: who may change them, what is refused, and that new weights answer first."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from loreloop.deployments.rollout import Rollout
from loreloop.protocol.errors import Conflict, NotFound
from loreloop.protocol.loop_rest import SetDeployment
from loreloop.store import deployments, keys
from loreloop.store.rows import Arm
from tests.http.site import Site, play, save

ROOT = "http://site/loop/v1/deployments"


async def change(
    site: Site, name: str, client: httpx.AsyncClient | None = None, status_code: int = 200, **body: Any
) -> dict[str, Any]:
    answer = await (client or site.client).put(f"{ROOT}/{name}", json=body)
    assert answer.status_code == status_code, answer.text
    return answer.json()


async def checkpoint(site: Site, name: str, model_id: str, seq_id: int = 1) -> str:
    return (await site.result("/save_weights_for_sampler", save(model_id, seq_id, name)))["path"]


async def two_checkpoints(site: Site) -> list[str]:
    model_id = await site.model()
    return [await checkpoint(site, name, model_id, seq) for seq, name in enumerate("ab", 1)]


def test_a_deployment_is_set_seen_rolled_back_and_deleted() -> None:
    async def scene(site: Site) -> None:
        a, b = await two_checkpoints(site)
        first = await change(site, "bot", target=a)
        assert (first["version"], first["target"], first["canary"], first["by"]) == (1, a, None, "test")
        second = await change(site, "bot", target="fake", canary=b, canary_percent=5)
        assert (second["canary"], second["canary_percent"]) == (b, 5)
        assert (await site.client.get(ROOT)).json()["deployments"] == [second]
        assert (await site.client.get(f"{ROOT}/bot/history")).json()["deployments"] == [second, first]
        third = (await site.client.post(f"{ROOT}/bot/rollback")).json()
        assert (third["version"], third["target"]) == (3, a)
        assert (await site.client.get(f"{ROOT}/bot")).json() == third
        assert (await site.client.delete(f"{ROOT}/bot")).status_code == 200
        assert (await site.client.get(f"{ROOT}/bot")).status_code == 404
        assert (await change(site, "bot", target=b))["version"] == 1

    play(scene)


def test_weights_that_do_not_answer_are_not_deployed() -> None:
    async def scene(site: Site) -> None:
        good, bad = await two_checkpoints(site)
        await change(site, "bot", target=good)
        shutil.rmtree(next(Path(site.services.store.folder).glob("checkpoints/*/*/b")))
        for body in ({"target": bad}, {"target": good, "canary": bad, "canary_percent": 5}):
            said = await change(site, "bot", status_code=400, **body)
            assert f"Nothing was changed, since {bad} does not answer: " in said["error"]["message"]
        assert (await site.client.get(f"{ROOT}/bot")).json()["version"] == 1

    play(scene)


@pytest.mark.parametrize(
    ("name", "body", "status_code", "said"),
    [
        ("bot", {"target": "nowhere"}, 404, "not served here"),
        ("bot", {"target": "tinker://x/sampler_weights/none"}, 404, "no checkpoint"),
        ("bot", {"target": "fake", "canary": "fake"}, 400, "come together"),
        ("bot", {"target": "fake", "canary_percent": 5}, 400, "come together"),
        ("bot", {"target": "fake", "colour": 5}, 400, "colour"),
        ("fake", {"target": "fake"}, 400, "is a base model"),
        (".bot", {"target": "fake"}, 400, "cannot be called"),
    ],
)
def test_what_cannot_be_deployed_is_said(name: str, body: dict[str, Any], status_code: int, said: str) -> None:
    async def scene(site: Site) -> None:
        assert said in (await change(site, name, status_code=status_code, **body))["error"]["message"]

    play(scene)


def test_a_change_that_was_meant_for_another_version_is_refused() -> None:
    async def scene(site: Site) -> None:
        a, b = await two_checkpoints(site)
        assert (await change(site, "bot", target=a, expected_version=0))["version"] == 1
        assert (await change(site, "bot", target=b, expected_version=1))["version"] == 2
        said = await change(site, "bot", status_code=409, target=a, expected_version=1)
        assert "is at version 2, and this change was meant for version 1" in said["error"]["message"]
        said = await change(site, "bot", status_code=409, target=a, expected_version=0)
        assert (await site.client.get(f"{ROOT}/bot")).json()["target"] == b
        await change(site, "new", status_code=409, target=a, expected_version=3)
        await change(site, "bot", status_code=400, target=a, expected_version=-1)

    play(scene)


def test_a_key_deploys_its_own_checkpoints_only() -> None:
    async def scene(site: Site) -> None:
        theirs = await checkpoint(site, "a", await site.model())
        await change(site, "theirs", target=theirs)
        await change(site, "everybodys", target="fake")
        async with site.client_with(site.new_key("train")) as key:
            admin, site.client = site.client, key
            mine = await checkpoint(site, "a", await site.model())
            site.client = admin
            await change(site, "mine", key, target=mine)
            await change(site, "mine", key, 404, target=theirs)
            await change(site, "mine", key, 400, target="fake")
            for name in ("theirs", "everybodys"):
                await change(site, name, key, 409, target=mine)
            assert (await key.get(f"{ROOT}/theirs")).status_code == 404
            assert (await key.delete(f"{ROOT}/theirs")).status_code == 404
            assert (await key.delete(f"{ROOT}/everybodys")).status_code == 409
            assert (await key.post(f"{ROOT}/theirs/rollback")).status_code == 404
            assert [row["name"] for row in (await key.get(ROOT)).json()["deployments"]] == ["everybodys", "mine"]
        async with site.client_with(site.new_key("infer:mine")) as asker:
            assert [row["name"] for row in (await asker.get(ROOT)).json()["deployments"]] == ["mine"]
            await change(site, "mine", asker, 403, target=mine)
            for name, status_code in {"mine": 200, "theirs": 404, "everybodys": 404}.items():
                for verb in ("", "/history"):
                    assert (await asker.get(f"{ROOT}/{name}{verb}")).status_code == status_code

    play(scene)


def test_what_a_deployment_answers_with_is_not_deleted() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        path = await checkpoint(site, "a", model_id)
        route = f"/training_runs/{model_id}/checkpoints/sampler_weights/a"
        await change(site, "bot", target="fake", canary=path, canary_percent=5)
        refused = await site.client.delete(route)
        assert (refused.status_code, refused.json()["error"]["type"]) == (409, "conflict_error")
        assert "the deployment bot answers with" in refused.text
        await change(site, "bot", target="fake")
        assert (await site.client.delete(route)).status_code == 200

    play(scene)


def slowly(site: Site, meanwhile: Callable[[], Awaitable[object]], *, is_admin: bool = True) -> Rollout:
    """Changes of the site's own key; while the weights warm up, something else happens."""
    key = site.services.store.read(keys.find, site.client.headers["x-api-key"], time.time())
    assert key is not None

    async def warm(_: Arm) -> None:
        await meanwhile()

    return Rollout(site.services.store, site.services.names, key, is_admin, True, warm)


def test_an_older_change_does_not_win_over_a_newer_one() -> None:
    async def scene(site: Site) -> None:
        a, b = await two_checkpoints(site)
        changes: list[Callable[[Rollout], Awaitable[object]]] = [
            lambda slow: slow.set("bot", SetDeployment(a)),  # there is none yet
            lambda slow: slow.set("bot", SetDeployment(a)),
            lambda slow: slow.rollback("bot"),
        ]
        for old in changes:
            with pytest.raises(Conflict, match="changed meanwhile"):
                await old(slowly(site, lambda: change(site, "bot", target=b)))
            newest, *_ = site.services.store.read(deployments.history, "bot", 9)
            assert newest.split.main.target == b

    play(scene)


def test_a_name_that_another_key_took_meanwhile_stays_its_own() -> None:
    async def scene(site: Site) -> None:
        mine = await checkpoint(site, "a", await site.model())
        async with site.client_with(site.new_key("train")) as key:
            admin, site.client = site.client, key
            theirs = await checkpoint(site, "a", await site.model())
            site.client = admin
            with pytest.raises(Conflict):
                await slowly(site, lambda: change(site, "bot", key, target=theirs), is_admin=False).set(
                    "bot", SetDeployment(mine)
                )
            assert (await key.get(f"{ROOT}/bot")).json()["target"] == theirs

    play(scene)


def test_weights_deleted_while_they_warm_up_are_not_deployed() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        path = await checkpoint(site, "a", model_id)
        route = f"/training_runs/{model_id}/checkpoints/sampler_weights/a"
        with pytest.raises(NotFound, match="no checkpoint"):
            await slowly(site, lambda: site.client.delete(route)).set("bot", SetDeployment("fake", path, 5))
        assert site.services.store.read(deployments.find, "bot") is None

    play(scene)


def test_the_history_is_in_the_order_of_its_times() -> None:
    async def scene(site: Site) -> None:
        a, b = await two_checkpoints(site)
        await change(site, "bot", target=a)
        began = (await change(site, "bot", target=b))["created"]
        made = await slowly(site, lambda: asyncio.sleep(0.05)).set("bot", SetDeployment(a))
        assert made.created > began + 0.05

    play(scene)


def test_keys_of_a_name_do_not_go_to_its_next_owner() -> None:
    async def scene(site: Site) -> None:
        question = {"model": "bot", "prompt": "1 2", "max_tokens": 2}
        await change(site, "bot", target="fake")
        async with (
            site.client_with(site.new_key("infer:bot", "infer:other")) as two,
            site.client_with(site.new_key("infer:bot")) as one,
        ):
            await site.client.delete(f"{ROOT}/bot")
            for name in ("bot", "other"):
                await change(site, name, target="fake")
            for key in (one, two):
                refused = await key.post("http://site/v1/completions", json=question)
                assert refused.status_code == 403, refused.text
            assert (await two.post("http://site/v1/completions", json=question | {"model": "other"})).is_success

    play(scene)

"""The routes of deployments: who may change them, what is refused, and that new weights answer first."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

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


def test_a_deployment_is_set_seen_rolled_back_and_deleted() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        a, b = [await checkpoint(site, name, model_id, seq) for seq, name in enumerate("ab", 1)]
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
        model_id = await site.model()
        good, bad = [await checkpoint(site, name, model_id, seq) for seq, name in enumerate("ab", 1)]
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

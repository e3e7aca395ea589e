"""Deployments and newest weights asked by name: who answers, who may ask, what is listed and how fast."""

import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, insert

from loreloop.deployments.canary import arm_for, parse_share
from loreloop.deployments.model_names import ModelNames, Target
from loreloop.protocol.errors import NotFound
from loreloop.protocol.sampling import Revision
from loreloop.store import deployments
from loreloop.store.rows import Arm, Deployment, KeyRow, Split
from loreloop.store.schema import DEPLOYMENT_VERSIONS, DEPLOYMENTS
from tests.http.site import Site, play, save
from tests.store.place import write_now

BARE = Arm("fake", "fake")
HEADER = "x-loreloop-revision"


def deploy(site: Site, name: str, *targets: str, percent: float = 50.0) -> Deployment:
    """As the command line does: checkpoints by their path, all else is a base."""
    store = site.services.store
    found = [store.read(deployments.arm_of, target) for target in targets if target.startswith("tinker://")]
    arms = [each.arm for each in found] or [BARE]
    split = Split(arms[0], arms[1], percent) if len(arms) > 1 else Split(arms[0])
    owner = found[0].key_id if found else None
    return write_now(store, deployments.set, name, owner, split, time.time(), "me")


async def checkpoint(site: Site, name: str, model_id: str, seq_id: int = 1) -> str:
    return (await site.result("/save_weights_for_sampler", save(model_id, seq_id, name)))["path"]


async def ask(site: Site, model: str, client: httpx.AsyncClient | None = None, **fields: object) -> httpx.Response:
    body = {"model": model, "prompt": "11 12", "max_tokens": 2, "seed": 1} | fields
    return await (client or site.client).post("http://site/v1/completions", json=body)


async def answered_by(site: Site, model: str, client: httpx.AsyncClient | None = None, **fields: object) -> str:
    answer = await ask(site, model, client, **fields)
    assert answer.status_code == 200, answer.text
    return answer.headers[HEADER]


async def listed(client: httpx.AsyncClient, **query: object) -> dict[str, Any]:
    answer = await client.get("http://site/v1/models", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(listing: dict[str, Any]) -> list[str]:
    return [entry["id"] for entry in listing["data"]]


def test_a_deployment_answers_with_its_newest_version() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        paths = [await checkpoint(site, name, model_id, seq) for seq, name in enumerate("ab", 1)]
        deploy(site, "bot", "fake")
        assert await answered_by(site, "bot") == "fake" == await answered_by(site, "org/alias")
        for path in paths:
            deploy(site, "bot", path)
            assert await answered_by(site, "bot") == path == await answered_by(site, path)
            assert await answered_by(site, "bot", stream=True) == path
        write_now(site.services.store, deployments.rollback, "bot", time.time(), "me")
        assert await answered_by(site, "bot") == paths[0]

    play(scene)


def test_a_sampling_session_keeps_the_version_it_began_with() -> None:
    async def scene(site: Site) -> None:
        path = await checkpoint(site, "a", await site.model())
        deploy(site, "bot", path)
        sampler = await site.sampler(base_model="bot")
        deploy(site, "bot", "fake")
        assert (await site.client.get(f"/samplers/{sampler}")).json()["base_model"] == "fake"
        tokens = {
            "prompt": {"chunks": [{"tokens": [11], "type": "encoded_text"}]},
            "sampling_params": {"max_tokens": 1},
        }
        request_id = (await site.ok("/asample", {"sampling_session_id": sampler, "seq_id": 0} | tokens))["request_id"]
        revision = site.services.dispatcher.tickets[request_id].op.revision
        assert revision is not None
        assert revision.revision_id == path

    play(scene)


def test_a_canary_answers_its_share_and_the_same_user_always_alike() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        main, canary = [await checkpoint(site, name, model_id, seq) for seq, name in enumerate("ab", 1)]
        made = deploy(site, "bot", main, canary)
        for user in ("ann", "bob", "eve", "joe"):
            arm = arm_for(made, user)
            assert {await answered_by(site, "bot", user=user) for _ in range(3)} == {arm.target}
        random.seed(1)
        assert {await answered_by(site, "bot") for _ in range(20)} == {main, canary}

    play(scene)


def split_of(percent: float, name: str = "bot") -> Deployment:
    return Deployment(name, None, 1, Split(Arm("a", "a"), Arm("b", "b"), percent), 0.0, "me")


def test_shares_are_kept_and_only_grow() -> None:
    users = [f"user {i}" for i in range(10_000)]
    chosen = [{u for u in users if arm_for(split_of(percent), u).target == "b"} for percent in (0.5, 5, 50)]
    assert chosen[0] < chosen[1] < chosen[2]
    assert [round(len(c) / 100, 0) for c in chosen] == pytest.approx([0.5, 5, 50], abs=1.5)
    assert chosen[1] != {u for u in users if arm_for(split_of(5, "other"), u).target == "b"}
    random.seed(1)
    assert Counter(arm_for(split_of(20), None).target for _ in range(5000))["b"] == pytest.approx(1000, abs=120)


@pytest.mark.parametrize("text", ["a", "a=", "=5%", "a=0%", "a=100%", "a=-1", "a=nan", "a=inf%", "a=x%"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    assert parse_share("tinker://a/b=2.5%") == parse_share("tinker://a/b=2.5") == ("tinker://a/b", 2.5)
    with pytest.raises(Exception, match="TARGET=5%"):
        parse_share(text)


def test_a_label_fits_a_header() -> None:
    assert Target("x", "/möd\r\n el").label == "/m%C3%B6d%0D%0A%20el"
    assert Target("x", "b", Revision("tinker://s:train:0/k/n", "/f")).label == "tinker://s:train:0/k/n"


def test_the_newest_weights_of_a_run_have_a_name() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        run = f"tinker://{model_id}"
        assert "save_weights_for_sampler" in (await ask(site, run)).json()["error"]["message"]
        path = await checkpoint(site, "a", model_id, 1)
        assert await answered_by(site, run) == path == await answered_by(site, f"fake;{run}")
        body = {"model_id": model_id, "seq_id": 2, "sampling_session_seq_id": 1, "kind": "inflight"}
        ephemeral = (await site.result("/save_weights_for_sampler", body))["sampling_session_id"]
        assert await answered_by(site, run) == ephemeral
        newer = await checkpoint(site, "b", model_id, 3)
        assert await answered_by(site, run) == newer
        async with site.client_with(site.new_key("infer")) as other:
            assert (await ask(site, run, other)).status_code == 404

    play(scene)


def test_ephemeral_weights_end_with_their_session() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        path = await checkpoint(site, "a", model_id, 1)
        body = {"model_id": model_id, "seq_id": 2, "sampling_session_seq_id": 1, "kind": "snapshot"}
        await site.result("/save_weights_for_sampler", body)
        await site.ok(f"/sessions/{session_id}/finish", {"reason": {"type": "client_exit"}})
        assert await answered_by(site, f"tinker://{model_id}") == path

    play(scene)


def test_a_deployment_whose_weights_are_gone_says_so() -> None:
    async def scene(site: Site) -> None:
        path = await checkpoint(site, "a", await site.model())
        deploy(site, "bot", path)
        shutil.rmtree(site.services.store.folder / "checkpoints")
        answer = await ask(site, "bot")
        assert answer.status_code == 410
        assert path in answer.text
        assert "whose files are gone" in answer.text

    play(scene)


def test_other_keys_deployments_do_not_exist_unless_granted() -> None:
    async def scene(site: Site) -> None:
        path = await checkpoint(site, "a", await site.model())
        deploy(site, "mine", path)
        deploy(site, "everybodys", "fake")
        async with site.client_with(site.new_key("train")) as other:
            refused = await ask(site, "mine", other)
            assert refused.status_code == 404
            assert "mean 'mine'" not in refused.text
            assert await answered_by(site, "everybodys", other) == "fake"
            assert ids(await listed(other)) == ["fake", "org/alias", "everybodys"]
        async with site.client_with(site.new_key("train", "infer:mine")) as granted:
            assert await answered_by(site, "mine", granted) == path
            assert ids(await listed(granted)) == ["fake", "org/alias", "everybodys", "mine"]

    play(scene)


def test_a_key_for_a_deployment_is_for_nothing_else() -> None:
    async def scene(site: Site) -> None:
        path = await checkpoint(site, "a", await site.model())
        for name in ("bot", "bots"):
            deploy(site, name, path)
        async with site.client_with(site.new_key("infer:bot", "infer:new")) as key:
            assert await answered_by(site, "bot", key) == path
            for model in ("fake", "org/alias", "bots", path, f"fake;{path}", f"tinker://{path.split('/')[2]}", "bo"):
                refused = await ask(site, model, key)
                assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
                assert (await key.get(f"http://site/v1/models/{model}")).status_code == 403
            assert ids(await listed(key)) == ["bot"]
            missing = await ask(site, "new", key)
            assert missing.status_code == 404
            assert "fake" not in missing.text
            for path_of in ("/create_session", "/create_sampling_session", "/weights_info", "/create_model"):
                assert (await key.post(path_of, json={})).status_code == 403
            assert (await key.get("/training_runs")).status_code == 403

    play(scene)


def test_a_key_for_a_deployment_gets_it_even_where_a_base_has_its_name() -> None:
    async def scene(site: Site) -> None:
        path = await checkpoint(site, "a", await site.model())
        deploy(site, "fake", path)
        async with site.client_with(site.new_key("infer:fake")) as key:
            assert await answered_by(site, "fake", key) == path
            assert (await listed(key))["data"][0]["root"] == path
        assert await answered_by(site, "fake") == "fake"
        assert ids(await listed(site.client)) == ["fake", "org/alias"]
        assert (await site.client.get("http://site/v1/models/fake")).json()["root"] == "fake"

    play(scene)


def test_models_are_listed_by_pages() -> None:
    async def scene(site: Site) -> None:
        for name in ("c", "b", "a", "fake"):
            deploy(site, name, "fake")
        everything = ["fake", "org/alias", "a", "b", "c"]
        whole = await listed(site.client)
        assert (ids(whole), whole["has_more"]) == (everything, False)
        for limit in (1, 2, 3, 4, 5, 6):
            found: list[str] = []
            page: dict[str, Any] = {"has_more": True, "last_id": ""}
            while page["has_more"]:
                page = await listed(site.client, limit=limit, after=page["last_id"])
                assert 0 < len(page["data"]) <= limit
                assert (page["first_id"], page["last_id"]) == (ids(page)[0], ids(page)[-1])
                found += ids(page)
            assert found == everything
        nothing = await listed(site.client, after="z")
        assert (nothing["data"], nothing["has_more"], nothing["last_id"]) == ([], False, None)

    play(scene)


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "1e3", "9" * 5000])
def test_a_limit_that_is_none_is_refused(limit: str) -> None:
    async def scene(site: Site) -> None:
        answer = await site.client.get("http://site/v1/models", params={"limit": limit})
        assert answer.status_code == 400
        assert "limit" in answer.text

    play(scene)


def test_one_model_is_shown_by_any_name_that_can_be_asked() -> None:
    async def scene(site: Site) -> None:
        path = await checkpoint(site, "a", await site.model())
        made = deploy(site, "bot", path)
        for name, root in (("bot", path), (path, path), ("org/alias", "fake"), ("fake", "fake")):
            shown = (await site.client.get(f"http://site/v1/models/{name}")).json()
            assert (shown["id"], shown["object"], shown["root"]) == (name, "model", root)
        assert (await site.client.get("http://site/v1/models/bot")).json()["created"] == int(made.created)
        assert (await site.client.get("http://site/v1/models/none")).status_code == 404
        assert (await site.client.get("http://site/v1/models", headers={"x-api-key": ""})).status_code == 401

    play(scene)


def test_a_misspelt_name_hears_of_all_that_come_near() -> None:
    async def scene(site: Site) -> None:
        path = await checkpoint(site, "friendly-bot", await site.model())
        deploy(site, "support-bot", path)
        for misspelt, meant in (
            ("suport-bot", "support-bot"),
            ("friendlybot", path),
            (path + "s", path),
            ("org/alas", "org/alias"),
            ("fakee", "fake"),
        ):
            answer = await ask(site, misspelt)
            assert answer.status_code == 404
            assert f"Did you mean {meant!r}" in answer.json()["error"]["message"]

    play(scene)


def many(connection: Connection, n: int) -> None:
    names = [f"n{i:06}" for i in range(n)]
    body = '{"main":{"target":"fake","base_model":"fake"}}'
    connection.execute(insert(DEPLOYMENTS), [{"name": name, "version": 1} for name in names])
    row = {"version": 1, "split": body, "created": 1.0, "by": "me"}
    connection.execute(insert(DEPLOYMENT_VERSIONS), [{"name": name} | row for name in names])


@pytest.mark.timed
def test_a_catalogue_of_very_many_names_answers_at_once() -> None:
    async def scene(site: Site) -> None:
        write_now(site.services.store, many, 100_000)
        times: list[float] = []
        for query in ({"limit": 100}, {"limit": 100, "after": "n050000"}, {"limit": 100, "after": "fake"}):
            for _ in range(3):
                started = time.perf_counter()
                assert len(ids(await listed(site.client, **query))) == 100
                times.append(time.perf_counter() - started)
            assert min(times[-3:]) < 0.1, query
        started = time.perf_counter()
        message = (await ask(site, "n05000x")).json()["error"]["message"]
        assert time.perf_counter() - started < 0.5
        assert re.search("Did you mean 'n05", message)
        assert len(message) < 1000
        assert len((await ask(site, "y" * 1_000_000)).text) < 2000

    play(scene)


@pytest.mark.timed
def test_very_many_aliases_are_looked_through_at_once(tmp_path: Path) -> None:
    names = ModelNames({"fake": tmp_path}, {f"org/n{i:06}": "fake" for i in range(100_000)})
    started = time.perf_counter()
    message = refused(names, "org/n05000x")
    assert time.perf_counter() - started < 0.2
    assert "Did you mean 'org/n05" in message
    assert "and 99,993 more" in message


def refused(names: ModelNames, name: str) -> str:
    with pytest.raises(NotFound) as caught:
        names.base(name)
    return caught.value.message


@pytest.mark.parametrize(
    ("scopes", "deployed"), [(("infer",), ()), (("infer:a", "train"), ("a",)), (("infer:a", "infer:b"), ("a", "b"))]
)
def test_scopes_name_deployments(scopes: Sequence[str], deployed: Sequence[str]) -> None:
    assert KeyRow("k", "n", tuple(scopes), 0.0, None).deployments == tuple(deployed)

"""Copies by the wire: into a place of a session, repeated, and refused."""

import shutil
import time
from pathlib import Path

import pytest

from loreloop.protocol.checksums import renew_sums
from loreloop.protocol.paths import parse_path
from loreloop.store import checkpoints, keys, sharing
from loreloop.store.rows import CheckpointRow
from tests.http.site import Site, new_model, play, save
from tests.store.place import write_now


def key_of(site: Site, name: str) -> str:
    return write_now(site.office.store, keys.create, name, ("train",), time.time()).secret


def test_a_copy_goes_to_a_place_of_a_session_once() -> None:
    async def scene(site: Site) -> None:
        session = await site.session()
        model = await site.model(session, 0)
        path = (await site.result("/save_weights", save(model, 1, "one")))["path"]
        body = {"source_path": path, "session_id": session, "model_seq_id": 1}
        copies = [(await site.ok("/copy_weights", body))["tinker_path"] for _ in range(2)]
        assert copies == [f"tinker://{session}:train:1/weights/one"] * 2
        # The place belongs to the copy, which cannot be trained.
        trained = await site.post("/optim_step", {"model_id": f"{session}:train:1", "seq_id": 1})
        assert trained.status_code == 400
        listed = (await site.client.get("/checkpoints")).json()["checkpoints"]
        assert sorted(one["tinker_path"] for one in listed) == sorted([path, copies[0]])

    play(scene)


def test_the_same_request_copies_once_and_another_one_again() -> None:
    async def scene(site: Site) -> None:
        model = await site.model()
        path = (await site.result("/save_weights", save(model, 1, "one")))["path"]
        body = {"source_path": path, "destination_project_id": "p"}

        async def copied(idempotency_key: str) -> str:
            headers = {"x-idempotency-key": idempotency_key}
            return (await site.client.post("/copy_weights", json=body, headers=headers)).json()["tinker_path"]

        first, again, other = [await copied(key) for key in ("a", "a", "b")]
        assert first == again != other
        found = (await site.client.get("/training_runs?project_id=p")).json()["training_runs"]
        assert len(found) == 2

    play(scene)


def test_a_copy_without_a_place_is_refused() -> None:
    async def scene(site: Site) -> None:
        model = await site.model()
        path = (await site.result("/save_weights", save(model, 1, "one")))["path"]
        refused = await site.post("/copy_weights", {"source_path": path})
        assert refused.status_code == 400
        assert "destination_project_id" in refused.text

    play(scene)


def test_a_damaged_checkpoint_is_not_copied() -> None:
    async def scene(site: Site) -> None:
        model = await site.model()
        path = (await site.result("/save_weights", save(model, 1, "one")))["path"]
        (folder,) = site.services.store.folder.glob("checkpoints/*/weights/one")
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        refused = await site.post("/copy_weights", {"source_path": path, "destination_project_id": "p"})
        assert refused.status_code == 410

    play(scene)


def test_a_copy_of_another_keys_weights_tells_none_of_its_metadata() -> None:
    async def scene(site: Site) -> None:
        session = await site.session()
        made = await site.result("/create_model", new_model(session, user_metadata={"secret": "plan"}))
        path = (await site.result("/save_weights", save(made["model_id"], 1, "one", user_metadata={"more": "plans"})))[
            "path"
        ]
        body = {
            "source_path": path,
            "destination_project_id": "p",
            "weights_access_token": site.client.headers["x-api-key"],
        }
        async with site.client_with(key_of(site, "other")) as other:
            copied = (await site.post("/copy_weights", body, other)).json()["tinker_path"]
            runs = (await other.get("/training_runs")).json()["training_runs"]
            assert [run["training_run_id"] for run in runs] == [copied.split("/")[2]]
            assert runs[0]["user_metadata"] is None
            assert "plan" not in (await other.get("/checkpoints")).text
        # One's own goes with the copy.
        mine = (await site.ok("/copy_weights", body))["tinker_path"].split("/")[2]
        assert (await site.client.get(f"/training_runs/{mine}")).json()["user_metadata"] == {"secret": "plan"}

    play(scene)


def test_a_copy_is_not_put_among_the_checkpoints_of_a_model() -> None:
    async def scene(site: Site) -> None:
        session = await site.session()
        model, live = await site.model(session, 0), await site.model(session, 1)
        path = (await site.result("/save_weights", save(model, 1, "one")))["path"]
        body = {"source_path": path, "session_id": session, "model_seq_id": 1}
        refused = await site.post("/copy_weights", body)
        assert (refused.status_code, "no place for this copy" in refused.text) == (400, True)
        assert (await site.client.get(f"/training_runs/{live}/checkpoints")).json()["checkpoints"] == []
        assert not list(site.services.store.folder.glob(f"checkpoints/*{session}*1/weights/one"))
        assert (await site.result("/save_weights", save(live, 1, "one")))["path"].startswith(f"tinker://{live}/")

    play(scene)


def test_copies_of_one_form_alone_share_a_place() -> None:
    async def scene(site: Site) -> None:
        session = await site.session()
        body = {"session_id": session, "model_seq_id": 9}
        for number, (rank, status) in enumerate(((8, 200), (8, 200), (4, 400))):
            made = await site.result("/create_model", new_model(session, number, lora_config={"rank": rank, "seed": 1}))
            path = (await site.result("/save_weights", save(made["model_id"], 1, f"n{number}")))["path"]
            assert (await site.post("/copy_weights", body | {"source_path": path})).status_code == status
        listed = (await site.client.get(f"/training_runs/{session}:train:9/checkpoints")).json()["checkpoints"]
        assert sorted(one["tinker_path"].rpartition("/")[2] for one in listed) == ["n0", "n1"]

    play(scene)


def test_no_model_is_made_where_a_copy_is() -> None:
    async def scene(site: Site) -> None:
        session = await site.session()
        path = (await site.result("/save_weights", save(await site.model(session, 0), 1, "one")))["path"]
        await site.ok("/copy_weights", {"source_path": path, "session_id": session, "model_seq_id": 1})
        for _ in range(2):
            refused = await site.post("/create_model", new_model(session, 1))
            assert (refused.status_code, "place of a copy" in refused.text) == (400, True)
        loaded = await site.post("/load_weights", {"path": path, "session_id": session, "model_seq_id": 1})
        assert loaded.status_code == 400

    play(scene)


def test_a_copy_of_what_is_saved_anew_meanwhile_is_refused_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        session = await site.session()
        model = await site.model(session, 0)
        paths = [(await site.result("/save_weights", save(model, n, f"n{n}")))["path"] for n in (1, 2)]
        folder = next(site.services.store.folder.glob("checkpoints/*/weights/n1"))
        summed = renew_sums(folder)
        write_now(site.office.store, checkpoints.set_sum, parse_path(paths[0]), summed.n_bytes, summed.crc32)
        link = sharing.copy_links

        def late(source: Path, target: Path, n_levels: int) -> bool:
            shutil.rmtree(source)
            shutil.copytree(source.with_name("n2"), source)
            (source / "more").write_text("of a later save")
            renew_sums(source)
            return link(source, target, n_levels)

        monkeypatch.setattr(sharing, "copy_links", late)
        refused = await site.post("/copy_weights", {"source_path": paths[0], "session_id": session, "model_seq_id": 1})
        assert (refused.status_code, "ask for the copy again" in refused.text) == (409, True)
        listed = (await site.client.get("/checkpoints")).json()["checkpoints"]
        assert sorted(one["tinker_path"] for one in listed) == sorted(paths)
        assert not list(site.services.store.folder.glob("checkpoints/*train_1/weights/*"))

    play(scene)


def test_a_copy_whose_files_go_before_its_row_is_refused_and_its_read_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        model = await site.model()
        path = (await site.result("/save_weights", save(model, 1, "one")))["path"]
        token = site.client.headers["x-api-key"]
        check = sharing.is_copy

        def gone(source: Path, copy: CheckpointRow) -> bool:
            monkeypatch.undo()
            found = check(source, copy)
            shutil.rmtree(copy.folder)
            return found

        monkeypatch.setattr(sharing, "is_copy", gone)
        async with site.client_with(key_of(site, "other")) as other:
            session = (await site.post("/create_session", {}, other)).json()["session_id"]
            body = {"source_path": path, "session_id": session, "model_seq_id": 0, "weights_access_token": token}
            for status, events in ((409, ["checkpoint_read"]), (200, ["checkpoint_read"] * 2 + ["checkpoint_copy"])):
                copied = await site.post("/copy_weights", body, other)
                assert copied.status_code == status, copied.text
                entries = (await site.client.get("/audit?event_type=checkpoints")).json()["entries"]
                assert [entry["event"] for entry in entries] == events

    play(scene)

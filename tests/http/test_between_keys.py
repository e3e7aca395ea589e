"""What one key is told of another's checkpoints, and what the audit log holds of who did what."""

import errno
from pathlib import Path

import pytest

from loreloop.store import tuned_models
from loreloop.store.job_rows import TunedModel
from tests.http.site import Site, play, save
from tests.store.place import write_now


def test_of_anothers_public_checkpoints_neither_metadata_nor_expiry_is_told() -> None:
    async def scene(site: Site) -> None:
        model = await site.model()
        private = {"user_metadata": {"secret": "plan"}, "ttl_seconds": 1000}
        for number, (url, kind) in enumerate(
            (("/save_weights", "weights"), ("/save_weights_for_sampler", "sampler_weights")), 1
        ):
            await site.result(url, save(model, number, "one", **private))
            await site.ok(f"/training_runs/{model}/checkpoints/{kind}/one/publish", {})
        run = f"/training_runs/{model}?access_scope=accessible"
        async with site.client_with(site.new_key("train", "infer")) as other:
            told = (await other.get(run)).json()
        own = (await site.client.get(run)).json()
        for name in ("last_checkpoint", "last_sampler_checkpoint"):
            assert (told[name]["user_metadata"], told[name]["expires_at"]) == (None, None)
            assert own[name]["user_metadata"] == private["user_metadata"]
            assert own[name]["expires_at"]
            assert told[name]["tinker_path"] == own[name]["tinker_path"]

    play(scene)


@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-31"])
def test_the_first_and_the_last_day_of_all_have_no_entries(day: str) -> None:
    async def scene(site: Site) -> None:
        answer = await site.client.get(f"/audit?day={day}")
        assert (answer.status_code, answer.json()) == (200, {"entries": []})

    play(scene)


def test_files_that_go_while_they_are_linked_are_told_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        session = await site.session()
        path = (await site.result("/save_weights", save(await site.model(session), 1, "one")))["path"]

        def link(source: Path, target: Path) -> None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(source))

        monkeypatch.setattr("loreloop.store.files.os.link", link)
        place = {"session_id": session, "model_seq_id": 1}
        for url, body in (("/load_weights", {"path": path}), ("/copy_weights", {"source_path": path})):
            assert (await site.post(url, body | place)).status_code == 410

    play(scene)


async def audited(site: Site) -> list[tuple[str, str]]:
    entries = (await site.client.get("/audit?event_type=checkpoints")).json()["entries"]
    return [(entry["event"], entry["tinker_path"]) for entry in entries]


def test_the_audit_log_holds_each_checkpoint_that_is_deleted_by_whatever_way() -> None:
    async def scene(site: Site) -> None:
        model = await site.model()
        paths = [(await site.result("/save_weights", save(model, n, f"n{n}")))["path"] for n in (1, 2, 3, 4)]
        run = (await site.client.get(f"/training_runs/{model}")).json()
        key_id = run["model_owner"]
        made = TunedModel(
            name="ft:x",
            key_id=key_id,
            job_id="none",
            base_model="fake",
            step=1,
            is_final=True,
            path=paths[0],
            state_path=None,
            metrics={},
            created=1.0,
        )
        write_now(site.services.store, tuned_models.add, made)
        async with site.client_with(site.new_key("admin")) as other:
            assert (await site.client.delete("http://site/v1/models/ft:x")).status_code == 200
            assert (await site.client.delete(f"http://site/loop/v1/checkpoints/{model}/weights/n2")).status_code == 200
            assert (await other.delete(f"http://site/loop/v1/runs/{model}?force=true")).status_code == 200
        assert sorted(await audited(site)) == [("checkpoint_delete", path) for path in paths]
        entries = (await site.client.get("/audit")).json()["entries"]
        owners = [entry["event_details"].get("owner") for entry in entries if entry["tinker_path"]]
        assert owners == [None, None, key_id, key_id]

    play(scene)

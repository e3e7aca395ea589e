"""Copies by the wire: into a place of a session, repeated, and refused."""

from tests.http.site import Site, play, save


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

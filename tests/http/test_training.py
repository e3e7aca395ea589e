"""Training routes: order, idempotency, refusals that cost their place only, checkpoints."""

import asyncio
import random

import pytest
from tinker.proto.response_conv import deserialize_forward_backward_output

from loreloop.protocol.paths import parse_path
from tests.http.site import Site, new_model, passing, play, save, step


def test_a_model_is_created_trained_and_stepped() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        accepted = await site.ok("/create_model", new_model(session_id))
        assert accepted["model_id"] == f"{session_id}:train:0"
        assert (await site.future(accepted["request_id"])).json()["model_id"] == accepted["model_id"]
        passed = await site.future((await site.train(passing(accepted["model_id"], 1))).json()["request_id"])
        output = deserialize_forward_backward_output(passed.content)
        assert list(output.metrics) == ["loss:sum"]
        assert output.loss_fn_outputs[0]["logprobs"].to_numpy().shape == (3,)
        stepped = await site.result("/optim_step", step(accepted["model_id"], 2))
        assert stepped["metrics"]["unclipped_grad_l2:mean"] > 0

    play(scene)


def test_the_model_tells_about_itself() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = (await site.result("/create_model", new_model(session_id, base_model="org/alias")))["model_id"]
        info = await site.ok("/get_info", {"model_id": model_id})
        assert (info["model_data"]["model_name"], info["lora_rank"], info["is_lora"]) == ("org/alias", 8, True)
        assert info["model_data"]["tokenizer_id"] == "loreloop/fake"  # what `/hf` serves, and no path

    play(scene)


@pytest.mark.parametrize("seed", range(3))
def test_operations_run_by_sequence_id_in_whatever_order_they_come(seed: int) -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        seqs = list(range(1, 9))
        random.Random(seed).shuffle(seqs)
        for seq in seqs:
            if seq % 2:
                assert (await site.train(passing(model_id, seq))).status_code == 200
            else:
                await site.ok("/optim_step", step(model_id, seq))
        # Each step finds the gradient of exactly one pass before it.
        norms = [(await site.future(f"{model_id}:{seq}")).json()["metrics"] for seq in (2, 4, 6, 8)]
        assert all(metrics["unclipped_grad_l2:mean"] > 0 for metrics in norms)

    play(scene)


def test_a_repeated_post_is_the_same_operation() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        made = [await site.ok("/create_model", new_model(session_id)) for _ in range(2)]
        assert made[0] == made[1]
        model_id = made[0]["model_id"]
        posts = await asyncio.gather(*(site.train(passing(model_id, 1)) for _ in range(4)))
        assert len({post.json()["request_id"] for post in posts}) == 1
        alone = await site.model(session_id, 1)
        await site.train(passing(alone, 1))
        steps = [await site.result("/optim_step", step(m, 2)) for m in (model_id, alone)]
        assert steps[0] == steps[1]

    play(scene)


def test_another_body_under_a_used_sequence_id_is_refused() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        await site.ok("/optim_step", step(model_id, 1))
        for path, body in (
            ("/optim_step", step(model_id, 1, beta1=0.5)),
            ("/create_model", new_model(session_id, lora_config={"rank": 4})),
        ):
            answer = await site.post(path, body)
            assert answer.status_code == 400
            assert "used before with another body" in answer.json()["detail"]
        assert (await site.future(f"{model_id}:1")).json()["metrics"]

    play(scene)


BAD_STEPS = [
    {"adam_params": {"learning_rate": "fast"}},
    {"adam_params": None, "optimizer_params": {"type": "dimuon", "learning_rate": 0.1}},
]


@pytest.mark.parametrize("fields", BAD_STEPS)
def test_a_refused_operation_costs_its_place_and_nothing_else(fields: dict[str, object]) -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        later = await site.ok("/optim_step", step(model_id, 2))
        assert (await site.post("/optim_step", step(model_id, 1) | fields)).status_code == 400
        assert (await site.future(later["request_id"])).json()["metrics"]

    play(scene)


@pytest.mark.parametrize("cut", [30, 60, -1])
def test_a_truncated_pass_costs_its_place_and_nothing_else(cut: int) -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        body = passing(model_id, 1).SerializeToString()
        head = len(passing(model_id, 1).model_id) + 6
        answer = await site.client.post("/forward_backward", content=body[: cut if cut < 0 else head + cut])
        assert answer.status_code == 400
        assert (await site.result("/optim_step", step(model_id, 2)))["metrics"]

    play(scene)


def test_a_failed_operation_says_whose_fault_it_is_and_training_goes_on() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        failed = await site.future((await site.train(passing(model_id, 1, "nope"))).json()["request_id"])
        assert failed.json()["category"] == "user"
        assert "'nope'" in failed.json()["error"]
        broken = await site.future((await site.train(passing(model_id, 2, "broken"))).json()["request_id"])
        assert broken.json()["category"] == "server"
        assert (await site.result("/optim_step", step(model_id, 3)))["metrics"]

    play(scene)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lora_config": {"rank": 0}}, "rank 0"),
        ({"lora_config": {"rank": 65}}, "1 to 64"),
        (
            {"lora_config": {"rank": 8, "train_attn": False, "train_mlp": False, "train_unembed": False}},
            "Nothing to train",
        ),
        ({"optimizer_config": {"type": "dimuon", "version": 1}}, "'dimuon' is not served"),
        ({"base_model": "fakir"}, "Did you mean 'fake'"),
        ({"session_id": "somebody's"}, "no session"),
    ],
)
def test_models_that_cannot_be(fields: dict[str, object], words: str) -> None:
    async def scene(site: Site) -> None:
        answer = await site.post("/create_model", new_model(await site.session()) | fields)
        assert answer.status_code in (400, 404)
        assert words in answer.json()["detail"]

    play(scene)


def test_models_are_limited_per_key() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        await site.model(session_id)
        answer = await site.post("/create_model", new_model(session_id, 1))
        assert answer.status_code == 400
        assert "1 live models" in answer.json()["detail"]
        await site.ok(f"/sessions/{session_id}/finish", {"reason": {"type": "success"}, "detail": None})
        assert await site.model()

    play(scene, models_per_key=1)


def test_the_last_model_may_be_asked_for_again() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        made = [(await site.post("/create_model", new_model(session_id))).status_code for _ in range(2)]
        assert made == [200, 200]

    play(scene, models_per_key=1)


def test_nothing_trains_after_its_session() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        assert (await site.post("/session_heartbeat", {"session_id": session_id})).status_code == 200
        await site.ok(f"/sessions/{session_id}/finish", {"reason": {"type": "errored"}, "detail": "enough"})
        assert (await site.post("/session_heartbeat", {"session_id": session_id})).status_code == 410
        for path, body in (
            ("/optim_step", step(model_id, 1)),
            ("/create_model", new_model(session_id, 1)),
            (
                "/create_sampling_session",
                {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "fake"},
            ),
        ):
            answer = await site.post(path, body)
            assert answer.status_code == 400
            assert "has ended" in answer.json()["detail"]

    play(scene)


def test_a_sequence_id_below_one_is_refused() -> None:
    async def scene(site: Site) -> None:
        assert (await site.train(passing(await site.model(), -1))).status_code == 400

    play(scene)


def test_a_sequence_id_beyond_64_bits_is_refused() -> None:
    async def scene(site: Site) -> None:
        assert (await site.post("/optim_step", step(await site.model(), 2**70))).status_code == 400
        assert await site.session()

    play(scene)


def test_checkpoints_are_saved_listed_and_described() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        saved = await site.result("/save_weights", save(model_id, 1, "a", ttl_seconds=3600, user_metadata={"k": 1}))
        assert saved["path"] == f"tinker://{model_id}/weights/a"
        sampler = await site.result("/save_weights_for_sampler", save(model_id, 2, "a", kind="snapshot"))
        assert sampler["path"] == f"tinker://{model_id}/sampler_weights/a"
        listed = (await site.client.get(f"/training_runs/{model_id}/checkpoints")).json()["checkpoints"]
        assert {c["checkpoint_id"]: c["checkpoint_type"] for c in listed} == {
            "weights/a": "training",
            "sampler_weights/a": "sampler",
        }
        training = next(c for c in listed if c["checkpoint_type"] == "training")
        assert training["expires_at"] is not None
        assert training["user_metadata"] == {"k": 1}
        info = await site.ok("/weights_info", {"tinker_path": saved["path"]})
        assert (info["base_model"], info["lora_rank"], info["train_mlp"]) == ("fake", 8, True)
        run = (await site.client.get(f"/training_runs/{model_id}")).json()
        assert run["last_checkpoint"]["tinker_path"] == saved["path"]

    play(scene)


def test_listings_come_in_pages() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        models = [await site.model(session_id, number) for number in range(3)]
        pages = [(await site.client.get("/training_runs", params={"limit": 2, "offset": n})).json() for n in (0, 2)]
        assert [run["training_run_id"] for page in pages for run in page["training_runs"]] == models[::-1]
        assert pages[1]["cursor"] == {"offset": 2, "limit": 2, "total_count": 3}
        for bad in ({"limit": 0}, {"limit": "x"}, {"offset": -1}):
            assert (await site.client.get("/checkpoints", params=bad)).status_code == 400

    play(scene)


def test_an_expiry_can_be_changed_and_a_checkpoint_deleted() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        await site.result("/save_weights", save(model_id, 1, "a"))
        at = f"/training_runs/{model_id}/checkpoints/weights/a"
        folder = site.services.store.folder / "checkpoints"
        for ttl, expires in ((60, True), (None, False)):
            assert (await site.client.put(f"{at}/ttl", json={"ttl_seconds": ttl})).status_code == 200
            listed = (await site.client.get("/checkpoints")).json()["checkpoints"]
            assert (listed[0]["expires_at"] is not None) is expires
        assert (await site.client.put(f"{at}/ttl", json={"ttl_seconds": 0})).status_code == 400
        assert list(folder.rglob("state.json"))
        assert (await site.client.delete(at)).status_code == 200
        assert (await site.client.delete(at)).status_code == 404
        assert not list(folder.rglob("state.json"))

    play(scene)


def test_a_name_is_taken_once_unless_it_may_be_overwritten() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        first = save(model_id, 1, "a")
        await site.result("/save_weights", first)
        assert (await site.post("/save_weights", first)).status_code == 200
        assert "exists already" in (await site.post("/save_weights", save(model_id, 2, "a"))).json()["detail"]
        overwritten = save(model_id, 3, "a", overwrite=True, user_metadata={"v": 2})
        assert (await site.result("/save_weights", overwritten))["path"]
        listed = (await site.client.get("/checkpoints")).json()["checkpoints"]
        assert [c["user_metadata"] for c in listed] == [{"v": 2}]

    play(scene)


def test_a_name_is_taken_once_also_by_saves_sent_together() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        posts = [await site.post("/save_weights", save(model_id, n, "a")) for n in (2, 3)]
        await site.train(passing(model_id, 1))
        outcomes = [
            await site.future(f"{model_id}:{n}") for n, post in zip((2, 3), posts, strict=True) if post.is_success
        ]
        assert len([outcome for outcome in outcomes if "path" in outcome.json()]) == 1

    play(scene)


@pytest.mark.parametrize("name", ["a/b", "..", "", "x" * 129])
def test_a_name_is_one_path_component(name: str) -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        assert (await site.post("/save_weights", save(model_id, 1, name))).status_code == 400
        assert (await site.result("/optim_step", step(model_id, 2)))["metrics"]

    play(scene)


def test_a_checkpoint_is_loaded_into_a_live_model_or_a_new_one() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        path = (await site.result("/save_weights", save(model_id, 1, "a")))["path"]
        loaded = await site.result(
            "/load_weights", {"model_id": model_id, "seq_id": 2, "path": path, "optimizer": True}
        )
        assert loaded["path"] == path
        new = {"session_id": session_id, "model_seq_id": 1, "path": path, "optimizer": False}
        made = await site.result("/load_weights", new)
        assert made["model_id"] == f"{session_id}:train:1"
        assert (await site.ok("/get_info", {"model_id": made["model_id"]}))["lora_rank"] == 8

    play(scene)


def test_a_journaled_load_outlives_its_checkpoint() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        path = (await site.result("/save_weights", save(model_id, 1, "a")))["path"]
        loading = await site.ok("/load_weights", {"model_id": model_id, "seq_id": 3, "path": path})
        assert (await site.client.delete(f"/training_runs/{model_id}/checkpoints/weights/a")).status_code == 200
        await site.train(passing(model_id, 2))
        assert (await site.future(loading["request_id"])).json()["path"] == path

    play(scene)


@pytest.mark.parametrize(
    ("path", "status_code", "words"),
    [
        ("tinker://{run}/weights/missing", 404, "no checkpoint"),
        ("tinker://{run}/sampler_weights/s", 400, "no optimizer's state"),
        ("tinker://{run}/elsewhere/s", 400, "'elsewhere'"),
        ("/etc/passwd", 400, "no checkpoint path"),
    ],
)
def test_other_paths_cannot_be_loaded(path: str, status_code: int, words: str) -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        await site.result("/save_weights_for_sampler", save(model_id, 1, "s"))
        body = {"model_id": model_id, "seq_id": 2, "path": path.format(run=model_id), "optimizer": True}
        answer = await site.post("/load_weights", body)
        assert answer.status_code == status_code
        assert words in answer.json()["detail"]
        assert (await site.result("/optim_step", step(model_id, 3)))["metrics"]

    play(scene)


def test_another_key_leaves_no_weights_where_a_session_would_find_them() -> None:
    """Also not where the id of the session is too long for the name of a folder."""

    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        path = (await site.result("/save_weights", save(model_id, 1, "a")))["path"]
        async with site.client_with(site.new_key("train")) as other:
            for place in (session_id, "s" * 5000):
                body = {"session_id": place, "model_seq_id": 1, "path": path}
                body["weights_access_token"] = site.client.headers["x-api-key"]
                assert (await site.post("/load_weights", body, other)).status_code == 404
        assert not list(site.services.store.folder.glob("journal/pins/*"))

    play(scene)


def test_a_new_load_takes_no_files_that_a_broken_off_one_has_left() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        paths = [(await site.result("/save_weights", save(model_id, n, f"n{n}")))["path"] for n in (1, 2)]
        files, request_id = site.services.dispatcher.files, f"{session_id}:train:1:0"
        pin = files.pin(files.checkpoint(parse_path(paths[0])), request_id)
        body = {"session_id": session_id, "model_seq_id": 1}
        refused = await site.post("/load_weights", body | {"path": paths[1]})
        assert (refused.status_code, "another checkpoint" in refused.text) == (409, True)
        accepted = await site.ok("/load_weights", body | {"path": paths[0]})
        # Once accepted it keeps its files, whatever has become of the checkpoint.
        await site.result("/save_weights", save(model_id, 3, "n1", overwrite=True))
        assert await site.ok("/load_weights", body | {"path": paths[0]}) == accepted
        assert pin.is_dir()

    play(scene)


def test_another_key_sees_none_of_it() -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()
        model_id = await site.model(session_id)
        path = (await site.result("/save_weights", save(model_id, 1, "a")))["path"]
        async with site.client_with(site.new_key("admin")) as other:
            theirs = (await site.post("/create_session", {}, other)).json()["session_id"]
            for url, body in (
                ("/optim_step", step(model_id, 2)),
                ("/get_info", {"model_id": model_id}),
                ("/session_heartbeat", {"session_id": session_id}),
                (f"/sessions/{session_id}/finish", {}),
                ("/create_model", new_model(session_id, 7)),
                ("/retrieve_future", {"request_id": f"{model_id}:1"}),
                ("/weights_info", {"tinker_path": path}),
                ("/load_weights", {"session_id": theirs, "model_seq_id": 0, "path": path}),
            ):
                assert (await site.post(url, body, other)).status_code == 404, url
            for url in (f"/training_runs/{model_id}", f"/training_runs/{model_id}/checkpoints"):
                assert (await other.get(url)).status_code == 404
            assert (await other.delete(f"/training_runs/{model_id}/checkpoints/weights/a")).status_code == 404
            assert (await other.get("/training_runs")).json()["training_runs"] == []
            assert (await other.get("/checkpoints")).json()["checkpoints"] == []
        assert (await site.result("/optim_step", step(model_id, 2)))["metrics"]

    play(scene)

"""Searches by the wire: what is too much to ask for, and what a cursor gives away."""

import pytest

from tests.http.site import Site, play, save


async def searched(site: Site, secret: str, **body: object) -> dict[str, object]:
    async with site.client_with(secret) as client:
        answer = await client.post("/sessions/search", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def test_another_keys_session_is_a_cursor_like_none() -> None:
    async def scene(site: Site) -> None:
        key = site.new_key("train")
        async with site.client_with(key) as client:
            for _ in range(2):
                await client.post("/create_session", json={"tags": [], "type": "create_session"})
        theirs = await site.session()
        mine = [one["session_id"] for one in (await searched(site, key))["sessions"]]
        assert len(mine) == 2
        found = {
            name: await searched(site, key, cursor={"last_session_id": last})
            for name, last in (("theirs", theirs), ("missing", "0" * 36), ("mine", mine[0]))
        }
        assert found["theirs"] == found["missing"] == {"sessions": [], "next_cursor": None}
        assert [one["session_id"] for one in found["mine"]["sessions"]] == mine[1:]

    play(scene, engine=False)


@pytest.mark.parametrize(
    "body",
    [
        {"display_name": "a " * 2000},
        {"user_metadata": {str(number): "x" for number in range(2000)}},
        {"project_ids": [str(number) for number in range(40_000)]},
        {"statuses": [{"type": "active"}] * 2000},
        {"statuses": [{"type": "client_finished", "reasons": ["success"] * 2000}]},
    ],
)
def test_a_search_for_too_much_is_refused(body: dict[str, object]) -> None:
    async def scene(site: Site) -> None:
        answer = await site.post("/sessions/search", body)
        assert answer.status_code == 400
        assert next(iter(body)) in answer.text

    play(scene, engine=False)


def test_as_much_as_may_be_asked_for_can_be() -> None:
    async def scene(site: Site) -> None:
        reasons = ["success", "errored", "interrupted", "success", "errored", "interrupted", "success", "errored"]
        body = {
            "display_name": "a " * 200,
            "user_metadata": {str(number): "x" for number in range(32)},
            "project_ids": [str(number) for number in range(100)],
            "statuses": [{"type": "client_finished", "reasons": reasons}] * 16,
        }
        assert (await site.ok("/sessions/search", body))["sessions"] == []

    play(scene, engine=False)


def test_the_project_of_sessions_that_name_none_is_found_by_every_list() -> None:
    async def scene(site: Site) -> None:
        sessions = [await site.session() for _ in range(3)]
        for session, project in ((sessions[1], "default"), (sessions[2], "p")):
            moved = await site.client.put(f"/sessions/{session}/project", json={"project_id": project})
            assert moved.status_code == 200
        for session in sessions:
            await site.result("/save_weights", save(await site.model(session), 1, "one"))
        async with site.client_with(site.new_key("admin")) as admin:
            stored = (await admin.get("/billing/usage/checkpoints/current")).json()["data"]
            of_default = await admin.get("/billing/usage/checkpoints/current?project_id=default")
        assert {one["project_id"]: one["checkpoint_count"] for one in stored} == {"default": 2, "p": 1}
        assert of_default.json()["data"] == [one for one in stored if one["project_id"] == "default"]
        listed = (await site.client.get("/training_runs?project_id=default")).json()["training_runs"]
        assert {one["training_run_id"].split(":")[0] for one in listed} == {*sessions[:2]}
        found = (await site.ok("/sessions/search", {"project_ids": ["default"]}))["sessions"]
        assert {one["session_id"] for one in found} == {*sessions[:2]}

    play(scene)

"""What one key is told of another's checkpoints, and what the audit log holds of who did what."""

import pytest

from tests.http.site import Site, play, save


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

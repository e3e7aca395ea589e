"""`/loop/v1/activity` and `/loop/v1/happenings`: what lives in a server, and what happened in it, for its operator."""

import asyncio

from tests.http.site import Site, passing, play, sample, step

LOOP = "http://site/loop/v1"


async def lately(site: Site, **query: object) -> dict:
    answer = await site.client.get(f"{LOOP}/happenings", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_lives_is_shown_with_the_names_of_its_owners() -> None:
    async def scene(site: Site) -> None:
        before = (await site.client.get(f"{LOOP}/activity")).json()["living"]["n_sessions"]
        session_id = await site.session()
        model_id = await site.model(session_id)
        sampler = await site.sampler(session_id)
        await site.ok("/asample", sample(sampler, params={"max_tokens": 4000}))
        found = (await site.client.get(f"{LOOP}/activity")).json()
        assert session_id in [one["id"] for one in found["living"]["sessions"]]
        assert [(one["id"], one["key_name"]) for one in found["living"]["runs"]] == [(model_id, "test")]
        (drawn,) = found["samples"]
        assert (drawn["key_name"], drawn["model"]) == ("test", "fake")
        assert (drawn["prompt_tokens"], drawn["num_samples"]) == (3, 1)
        numbers = (found["living"]["n_sessions"], found["living"]["n_runs"], found["living"]["jobs"])
        assert numbers == (before + 1, 1, [])
        (engine,) = found["engines"]
        assert (engine["model"], engine["replica"], engine["up"]) == ("fake", 0, True)
        assert all(one["resident_bytes"] >= 0 and one["role"] for one in found["processes"])
        await site.ok(f"/sessions/{session_id}/finish", {})
        found = (await site.client.get(f"{LOOP}/activity")).json()
        assert (found["living"]["n_sessions"], found["living"]["runs"], found["samples"]) == (before, [], [])

    play(scene)


def test_what_happens_is_told_in_its_order_and_to_those_who_wait() -> None:
    async def scene(site: Site) -> None:
        began = (await lately(site))["last"]
        waiting = asyncio.ensure_future(lately(site, after=began, seconds=15))
        await asyncio.sleep(0)
        model_id = await site.model()
        assert (await waiting)["happenings"]
        await site.train(passing(model_id, 1))
        await site.future(f"{model_id}:1")
        await site.result("/optim_step", step(model_id, 2))
        sampler = await site.sampler()
        await site.future((await site.ok("/asample", sample(sampler)))["request_id"])
        of_run = (await lately(site, after=began, of=model_id))["happenings"]
        assert [one["kind"] for one in of_run if one["kind"] != "request"] == ["operation", "pass", "step"]
        assert "loss " in next(one["text"] for one in of_run if one["kind"] == "pass")
        found = (await lately(site, after=began))["happenings"]
        assert [one["number"] for one in found] == sorted(one["number"] for one in found)
        (drawn,) = [one for one in found if one["kind"] == "sample"]
        assert drawn["figures"]["generated_tokens"] == 4
        assert any("POST /api/v1/asample 200" in one["text"] for one in found)
        assert not any("happenings" in one["text"] for one in found)  # whoever watches does not see himself

    play(scene)


def test_a_page_is_as_long_as_was_asked_and_the_next_goes_on() -> None:
    async def scene(site: Site) -> None:
        began = (await lately(site))["last"]
        for number in range(5):
            site.services.dispatcher.observers.happenings.note("job", "j", str(number))
        told = []
        for _ in range(3):
            page = await lately(site, after=began, limit=2)
            told += [one["text"] for one in page["happenings"]]
            began = page["last"]
        assert told == ["0", "1", "2", "3", "4"]
        assert [one["text"] for one in (await lately(site, limit=2))["happenings"]] == ["3", "4"]

    play(scene)


def test_others_than_the_operator_see_nothing() -> None:
    async def scene(site: Site) -> None:
        async with site.client_with(site.new_key("train")) as other:
            for path in ("activity", "happenings"):
                assert (await other.get(f"{LOOP}/{path}")).status_code == 403

    play(scene, engine=False)

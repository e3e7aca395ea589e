"""Pages of runs: what a key sees of its own and of others', curves that grow, and several runs over one another."""

import asyncio
import re

from tinker.proto.response_conv import deserialize_forward_backward_output

from loreloop.http.ui import live
from loreloop.http.ui.metric_words import KNOWN, words_of
from loreloop.store import series
from loreloop.store.series import Measured
from tests.http.browser import UI, signed_in, words
from tests.http.site import Site, passing, play, save, step
from tests.store.place import write_now


async def trained(site: Site, n_steps: int = 3) -> str:
    """A run of the site's own key with some steps and a checkpoint."""
    run_id = await site.model()
    for number in range(n_steps):
        await site.train(passing(run_id, 2 * number + 1))
        await site.result("/optim_step", step(run_id, 2 * number + 2))
    await site.result("/save_weights_for_sampler", save(run_id, 2 * n_steps + 1, "first"))
    await site.services.dispatcher.observers.series.flush()
    return run_id


def test_a_page_without_runs_says_how_one_is_made() -> None:
    async def scene(site: Site) -> None:
        browser = await signed_in(site, "infer")
        assert "create_lora_training_client" in words(await browser.look("/runs"))
        assert "No run is named" in words(await browser.look("/compare"))

    play(scene, engine=False)


def test_a_run_shows_its_settings_its_steps_and_its_checkpoints() -> None:
    async def scene(site: Site) -> None:
        run_id = await trained(site)
        browser = await signed_in(site, "admin")
        assert run_id in await browser.look("/runs")
        page = await browser.look(f"/runs/{run_id}")
        shown = words(page)
        for text in ("Loss a token", "Gradient norm", "Worry where", f"tinker://{run_id}/sampler_weights/first"):
            assert text in shown
        assert page.count("<polyline") == page.count("<figure") >= 3
        told = await browser.read(f"/runs/{run_id}")
        assert told["run"]["n_steps"] == 3
        assert [place for place, _ in told["series"][run_id]["loss"]] == [1, 2, 3]
        assert [rate for _, rate in told["series"][run_id]["learning_rate"]] == [0.1] * 3
        assert told["settings"]["rank"] == 8

    play(scene)


def test_the_words_beside_a_curve_are_whole_sentences() -> None:
    for metric in (*KNOWN, "unheard_of"):
        about = words_of(metric).about
        assert about.endswith("."), metric
        assert "  " not in about


def test_the_loss_is_that_of_the_passes_by_their_tokens() -> None:
    async def scene(site: Site) -> None:
        run_id = await site.model()
        losses = []
        for seq_id in (1, 2):
            request_id = (await site.train(passing(run_id, seq_id, n=3 * seq_id))).json()["request_id"]
            passed = deserialize_forward_backward_output((await site.future(request_id)).content)
            losses.append(passed.metrics["loss:sum"])
        await site.result("/optim_step", step(run_id, 3))
        await site.services.dispatcher.observers.series.flush()
        (point,) = site.office.store.read(series.of_run, run_id)
        assert abs(point.values["loss"] - sum(losses) / 9) < 1e-6
        assert point.values["trained_tokens"] == 9

    play(scene)


def test_unknown_and_foreign_runs_are_answered_alike() -> None:
    async def scene(site: Site) -> None:
        run_id = await trained(site, 1)
        browser = await signed_in(site, "train")
        foreign, unknown = await browser.look(f"/runs/{run_id}", 404), await browser.look("/runs/unknown", 404)
        assert foreign == unknown
        assert "There is nothing at this address" in words(foreign)
        for path in ("/runs/{}/live", "/compare?runs={}", "/runs/{}/timeline"):
            assert await browser.look(path.format(run_id), 404) == await browser.look(path.format("unknown"), 404)
        assert run_id not in await browser.look("/runs")

    play(scene)


def test_runs_over_one_another_show_the_settings_that_differ() -> None:
    async def scene(site: Site) -> None:
        session = await site.session()
        own = [await site.model(session), await site.model(session, 1)]
        body = {"session_id": session, "model_seq_id": 2, "type": "create_model", "base_model": "fake"}
        other = await site.result("/create_model", body | {"lora_config": {"rank": 4, "seed": 1}})
        for run_id in (*own, other["model_id"]):
            rate = 0.5 if run_id == other["model_id"] else 0.25
            write_now(
                site.office.store, series.add_all, {run_id: [Measured(1.0, {"loss": 2.0, "learning_rate": rate})]}
            )
        browser = await signed_in(site, "admin")
        told = await browser.read(f"/compare?runs={own[0]},{other['model_id']}")
        assert told["differences"] == {"rank": [8, 4], "first_learning_rate": [0.25, 0.5]}
        page = await browser.look(f"/compare?run={own[0]}&run={own[1]}")
        assert "They differ in no setting" in words(page)
        assert page.count("<polyline") == 4
        assert "at most 8" in words(await browser.look("/compare?runs=" + ",".join(map(str, range(9))), 400))

    play(scene)


def test_pages_of_the_list_lead_on() -> None:
    async def scene(site: Site) -> None:
        ids = [site.office.run(number) for number in range(5)]
        browser = await signed_in(site, "admin")
        seen = []
        for offset in (0, 2, 4):
            page = await browser.look(f"/runs?limit=2&offset={offset}")
            seen += re.findall(r'name="run" value="([^"]+)"', page)
            assert (">Older<" in page, ">Newer<" in page) == (offset < 4, offset > 0)
        assert sorted(seen) == sorted(ids)
        assert "whole number" in words(await browser.look("/runs?limit=x", 400))

    play(scene, engine=False)


def test_a_page_is_sent_anew_when_its_run_has_gone_on(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(live, "STREAM_SECONDS", 1.0)
    monkeypatch.setattr(live, "PAUSE_TIMES", 0)

    async def scene(site: Site) -> None:
        run_id = site.office.run()
        browser = await signed_in(site, "admin")
        asked = asyncio.ensure_future(browser.client.get(f"{UI}/runs/{run_id}/live"))
        await asyncio.sleep(0.2)
        write_now(site.office.store, series.add_all, {run_id: [Measured(1.0, {"loss": 2.5})]})
        answer = await asked
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [event for event in answer.text.split("\n\n") if event.startswith("event: page")]
        assert len(events) == 2
        assert "Nothing was measured yet" in events[0]
        assert "2.5" in events[1]
        assert all(line.startswith("data: ") for line in events[1].split("\n")[1:])

    play(scene, engine=False)


def test_a_run_leads_to_the_timeline_of_its_session() -> None:
    async def scene(site: Site) -> None:
        run_id = await trained(site, 1)
        browser = await signed_in(site, "admin")
        answer = await browser.client.get(f"{UI}/runs/{run_id}/timeline")
        assert answer.status_code == 303
        file = await browser.client.get(answer.headers["location"])
        assert file.status_code == 200
        assert run_id.encode() in file.content
        await (await signed_in(site, "train")).look(f"/runs/{run_id}/timeline", 404)

    play(scene)

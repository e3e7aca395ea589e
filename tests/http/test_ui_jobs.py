"""Pages of jobs: events, files, curves, and the buttons that do what the routes for programs do."""

import math
import re
import sys
import time

from sqlalchemy import Connection, insert

from loreloop.store import jobs, keys
from loreloop.store.job_rows import JobRow
from loreloop.store.schema import JOB_METRICS
from loreloop.store.series import MOST_POINTS
from tests.http.browser import UI, signed_in, words
from tests.http.site import Site, play
from tests.store.place import write_now
from tests.store.test_uploads import plan


async def asked_for(site: Site) -> str:
    """A job of the site's own key that waits, since no worker is there."""
    job = JobRow(id=jobs.new_id(), key_id=site.office.key_id, created=time.time(), plan=plan(base_model="fake"))
    return (await site.services.desk.create(job)).id


def test_a_page_without_jobs_says_how_one_is_made() -> None:
    async def scene(site: Site) -> None:
        assert "loreloop jobs create" in words(await (await signed_in(site, "train")).look("/jobs"))

    play(scene, engine=False)


def test_a_job_shows_its_events_its_files_and_its_curves() -> None:
    async def scene(site: Site) -> None:
        job_id = await asked_for(site)
        metrics = {"train_loss": 1.25, "train_reward_mean": 0.5, "own_measure": 7.0}
        for number in (1, 2):
            write_now(
                site.office.store, jobs.stepped, job_id, number, metrics, trained_tokens=5 * number, now=time.time()
            )
        browser = await signed_in(site, "admin")
        assert job_id in await browser.look("/jobs")
        page = await browser.look(f"/jobs/{job_id}")
        shown = words(page)
        for text in ("Created fine-tuning job", "Training loss", "Reward", "Own measure", "Pause", "Cancel", "deleted"):
            assert text in shown
        assert page.count("<polyline") == 3
        told = await browser.read(f"/jobs/{job_id}")
        assert told["series"][job_id]["train_loss"] == [[1, 1.25], [2, 1.25]]
        assert told["job"]["status"] == "queued"

    play(scene, engine=False)


def test_what_is_no_number_leaves_a_gap_and_the_smallest_and_the_largest_are_drawn() -> None:
    edges = {"none_left": (0.0, 5e-324), "level": (sys.float_info.max,) * 2, "wide": (-1.7e308, 1.7e308)}

    async def scene(site: Site) -> None:
        job_id = await asked_for(site)
        for number in (1, 2):
            metrics = {"train_loss": math.nan if number == 2 else 1.5, "valid_loss": math.inf}
            metrics |= {name: values[number - 1] for name, values in edges.items()}
            write_now(site.office.store, jobs.stepped, job_id, number, metrics, trained_tokens=1, now=time.time())
        browser = await signed_in(site, "admin")
        page = await browser.look(f"/jobs/{job_id}")
        assert page.count("<polyline") == 4
        assert not re.search(r'(points|y1)="[^"]*(nan|inf)', page)
        told = await browser.read(f"/jobs/{job_id}")
        assert told["series"][job_id]["train_loss"] == [[1, 1.5]]

    play(scene, engine=False)


def test_a_job_of_very_many_steps_is_drawn_by_its_means() -> None:
    n_steps = 40_000

    def fill(connection: Connection, job_id: str) -> None:
        rows = [
            {"job_id": job_id, "step": step, "values": f'{{"train_loss":{step % 2}}}'} for step in range(1, n_steps + 1)
        ]
        connection.execute(insert(JOB_METRICS), rows)

    async def scene(site: Site) -> None:
        job_id = await asked_for(site)
        write_now(site.office.store, fill, job_id)
        browser = await signed_in(site, "admin")
        told = (await browser.read(f"/jobs/{job_id}"))["series"][job_id]["train_loss"]
        assert len(told) <= MOST_POINTS
        assert told[-1][0] == n_steps
        assert {value for _, value in told} == {0.5}
        assert len(await browser.look(f"/jobs/{job_id}")) < 100_000

    play(scene, engine=False, hang_seconds=60)


def test_a_job_is_paused_resumed_and_cancelled() -> None:
    async def scene(site: Site) -> None:
        job_id = await asked_for(site)
        browser = await signed_in(site, "admin")
        for action, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
            answer = await browser.submit(f"/jobs/{job_id}", f"/jobs/{job_id}/{action}")
            assert answer.status_code == 303, answer.text
            assert site.office.store.read(jobs.of_anyone, job_id).status == status
        answer = await browser.submit(f"/jobs/{job_id}", f"/jobs/{job_id}/cancel")
        assert answer.status_code == 409
        assert "is cancelled" in words(answer.text)
        assert (await browser.submit("/jobs", f"/jobs/{job_id}/destroy")).status_code == 404

    play(scene, engine=False)


def test_a_job_of_another_key_is_none() -> None:
    async def scene(site: Site) -> None:
        job_id = await asked_for(site)
        browser = await signed_in(site, "train")
        assert await browser.look(f"/jobs/{job_id}", 404) == await browser.look("/jobs/ftjob-unknown", 404)
        assert job_id not in await browser.look("/jobs")
        assert (await browser.submit("/jobs", f"/jobs/{job_id}/cancel")).status_code == 404
        assert site.office.store.read(jobs.of_anyone, job_id).status == "queued"
        await (await signed_in(site, "infer")).look("/jobs", 403)

    play(scene, engine=False)


def test_pages_of_jobs_lead_on() -> None:
    async def scene(site: Site) -> None:
        ids = [await asked_for(site) for _ in range(3)]
        browser = await signed_in(site, "admin")
        first = await browser.read("/jobs?limit=2")
        second = await browser.read(f"/jobs?limit=2&after={first['next']}")
        assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids[::-1]
        assert second["next"] is None

    play(scene, engine=False)


def test_files_of_a_job_are_saved_and_no_others() -> None:
    async def scene(site: Site) -> None:
        kept = [
            (
                await site.client.post("http://site/v1/files", data={"purpose": "evals"}, files={"file": (name, body)})
            ).json()
            for name, body in (("a<b>.txt", b"<script>alert(1)</script>"), ("other.txt", b"other"))
        ]
        admin = site.client.headers["x-api-key"]
        owner = site.office.store.read(keys.find, admin, time.time())
        assert owner is not None
        row = JobRow(
            id=jobs.new_id(), key_id=owner.id, created=time.time(), plan=plan(kept[0]["id"], base_model="fake")
        )
        job_id = (await site.services.desk.create(row)).id
        browser = await signed_in(site, "admin")
        assert "a<b>.txt" in words(await browser.look(f"/jobs/{job_id}"))
        answer = await browser.client.get(f"{UI}/jobs/{job_id}/files/{kept[0]['id']}")
        assert answer.content == b"<script>alert(1)</script>"
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment")
        await browser.look(f"/jobs/{job_id}/files/{kept[1]['id']}", 404)
        stranger = await signed_in(site, "train")
        await stranger.look(f"/jobs/{job_id}/files/{kept[0]['id']}", 404)

    play(scene, engine=False)

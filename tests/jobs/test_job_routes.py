"""Routes of jobs over a real store in this process, where no worker comes: what is refused, kept and told then."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx

from tests.http.site import Site, play
from tests.jobs.rig import DEMONSTRATIONS

FORM = {"data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl", DEMONSTRATIONS)}}


async def upload(site: Site, client: httpx.AsyncClient | None = None) -> httpx.Response:
    return await (client or site.client).post("http://site/v1/files", **FORM)  # type: ignore[arg-type]


async def create(site: Site, **fields: Any) -> httpx.Response:
    body = {"model": "fake", "training_file": (await upload(site)).json()["id"]} | fields
    return await site.client.post("http://site/v1/fine_tuning/jobs", json=body)


def with_config(site: Site) -> None:
    """The tests' model has a tokenizer and no config.json, by whose width a rate is chosen."""
    folder = site.services.names.folder("fake")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))


def test_without_the_sdk_a_job_is_refused_with_what_to_install() -> None:
    async def scene(site: Site) -> None:
        site.app.state.services = replace(site.services, has_worker=False)
        answer = await create(site)
        assert answer.status_code == 400
        assert "pip install 'loreloop[learn]'" in answer.json()["error"]["message"]

    play(scene, engine=False)


def test_a_job_waits_until_a_worker_comes() -> None:
    async def scene(site: Site) -> None:
        with_config(site)
        job = (await create(site)).json()
        assert (job["status"], job["fine_tuned_model"], job["trained_tokens"]) == ("queued", None, None)
        assert job["organization_id"]
        url = f"http://site/v1/fine_tuning/jobs/{job['id']}"
        assert (await site.client.post(f"{url}/cancel")).json()["status"] == "cancelled"
        streamed = await site.client.get(f"{url}/events?stream=true")
        said = [json.loads(line[6:])["message"] for line in streamed.text.splitlines() if line.startswith("data: {")]
        assert said == [f"Created fine-tuning job: {job['id']}", "The job was cancelled."]
        assert streamed.text.endswith("data: [DONE]\n\n")

    play(scene, engine=False)


def test_a_key_has_so_many_unfinished_jobs() -> None:
    async def scene(site: Site) -> None:
        with_config(site)
        assert (await create(site)).status_code == 200
        refused = await create(site)
        assert refused.status_code == 413
        assert "1 jobs that are not finished" in refused.json()["error"]["message"]

    play(scene, engine=False, jobs_per_key=1)


def test_files_are_bounded_in_size_and_in_number() -> None:
    async def scene(site: Site) -> None:
        big = {"data": {"purpose": "evals"}, "files": {"file": ("a", b"x" * (2 << 20))}}
        refused = await site.client.post("http://site/v1/files", **big)  # type: ignore[arg-type]
        assert refused.status_code == 413
        assert "over 1 MiB" in refused.json()["error"]["message"]
        small = {"data": {"purpose": "evals"}, "files": {"file": ("a", b"x" * (700 << 10))}}
        assert (await site.client.post("http://site/v1/files", **small)).status_code == 200  # type: ignore[arg-type]
        refused = await site.client.post("http://site/v1/files", **small)  # type: ignore[arg-type]
        assert refused.status_code == 413
        assert "Delete some" in refused.json()["error"]["message"]
        assert len([*site.services.dispatcher.files.uploads.iterdir()]) == 1, "what was refused leaves nothing"

    play(scene, engine=False, file_mib=1, files_mib=1)


def test_a_made_up_job_key_is_none() -> None:
    async def scene(site: Site) -> None:
        async with site.client_with("tml-job-made-up") as stranger:
            assert (await upload(site, stranger)).status_code == 401

    play(scene, engine=False)

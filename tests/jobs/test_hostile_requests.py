"""Requests that no honest client sends: forms without an end, names that command a terminal, keys in odd letters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from loreloop.deployments.model_names import ModelNames
from loreloop.host.job_desk import _InHand
from loreloop.http.openai import files
from loreloop.http.services import UPLOADS_READ_AT_ONCE
from loreloop.protocol.jobs import JobPlan
from loreloop.store import jobs, tuned_models
from loreloop.store.job_rows import JobRow, TunedModel
from tests.http.site import Site, play
from tests.jobs.rig import DEMONSTRATIONS
from tests.jobs.test_job_routes import create, upload, with_config
from tests.store.place import write_now
from tests.store.test_uploads import plan

FORM = {"content-type": "multipart/form-data; boundary=x"}


async def posted(site: Site, body: AsyncIterator[bytes] | bytes) -> tuple[int, str]:
    answer = await site.client.post("http://site/v1/files", content=body, headers=FORM)
    return answer.status_code, answer.text


@pytest.mark.parametrize(
    "part",
    [
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"y" * 60_000 + b"\r\n",
        b"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\n\r\n" * 1000,
        b"--x--\r\n" + b" " * 60_000,
    ],
)
def test_a_form_without_an_end_is_broken_off(part: bytes) -> None:
    async def scene(site: Site) -> None:
        n_sent = 0

        async def parts() -> AsyncIterator[bytes]:
            nonlocal n_sent
            while n_sent < 1000:
                n_sent += 1
                yield part

        status, said = await posted(site, parts())
        assert status in (400, 413), said
        assert n_sent < 200

    play(scene, engine=False, file_mib=1)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a\x1b[2Jb.jsonl", "a?[2Jb.jsonl"),
        ("a\nb\u202ec", "a?b?c"),
        ("C:\\Users\\ann\\b.jsonl", "b.jsonl"),
        ("..", "file"),
        ("a/", "file"),
    ],
)
def test_a_name_commands_no_terminal_and_leads_nowhere(sent: str, kept: str) -> None:
    async def scene(site: Site) -> None:
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + sent.encode() + b'"\r\n\r\nx\r\n'
        purpose = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nevals\r\n--x--\r\n'
        status, said = await posted(site, head + purpose)
        assert status == 200, said
        assert json.loads(said)["filename"] == kept
        content = await site.client.get(f"http://site/v1/files/{json.loads(said)['id']}/content")
        assert (content.status_code, content.content) == (200, b"x")

    play(scene, engine=False)


def test_a_key_in_other_letters_is_no_key_while_a_job_runs() -> None:
    async def scene(site: Site) -> None:
        row = JobRow(id=jobs.new_id(), key_id="k", created=1.0, plan=plan())
        site.services.desk.in_hand[row.id] = _InHand(row, "tml-job-x")
        for header in ({"authorization": "Bearer schlüssel"}, {"x-api-key": "schlüssel"}):
            raw = {name: value.encode() for name, value in header.items()}
            async with site.client_with(None) as stranger:
                answer = await stranger.get("http://site/v1/files", headers=raw)  # type: ignore[arg-type]
                assert answer.status_code == 401

    play(scene, engine=False)


def test_jobs_are_sought_by_as_many_metadata_as_one_can_have() -> None:
    async def scene(site: Site) -> None:
        query = "&".join(f"metadata[{number}]=" for number in range(1500))
        answer = await site.client.get(f"http://site/v1/fine_tuning/jobs?{query}")
        assert answer.status_code == 400
        assert "16" in answer.json()["error"]["message"]

    play(scene, engine=False)


def test_an_upload_whose_asker_left_keeps_row_and_body_together() -> None:
    async def scene(site: Site) -> None:
        for ticks in range(60):
            task = asyncio.ensure_future(upload(site))
            for _ in range(ticks):
                await asyncio.sleep(0.0005)
            task.cancel()
            await asyncio.wait({task})
        await asyncio.sleep(0.2)
        listed = (await site.client.get("http://site/v1/files")).json()["data"]
        bodies = {path.name for path in site.services.dispatcher.files.uploads.iterdir()}
        assert {file["id"] for file in listed} <= bodies

    play(scene, engine=False)


def test_a_job_whose_file_lines_are_odd_is_told_so() -> None:
    async def scene(site: Site) -> None:
        deep = b"[" * 200_000 + b"\n"
        lone = DEMONSTRATIONS * 9000 + b'{"messages": [{"role": "\\ud800", "content": "x"}]}\n'
        for contents in (deep, lone, lone[-60:], b"\x00" * 100, b"\n" * 100_000):
            answer = await site.client.post(
                "http://site/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", contents)}
            )
            assert answer.status_code == 400, answer.text

    play(scene, engine=False, hang_seconds=60)


def test_large_files_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE_BYTES", 1)
    n_most = 0

    async def scene(site: Site) -> None:
        nonlocal n_most
        # Servers of other tests may still be there.
        before = set(psutil.Process().children())
        coming = asyncio.gather(*(upload(site) for _ in range(5)))
        while not coming.done():
            n_most = max(n_most, len(set(psutil.Process().children()) - before))
            await asyncio.sleep(0.01)
        assert [answer.status_code for answer in coming.result()] == [200] * 5

    play(scene, engine=False, hang_seconds=60)
    assert n_most == UPLOADS_READ_AT_ONCE


def test_uploads_at_once_have_no_more_room_than_one_after_the_other() -> None:
    async def scene(site: Site) -> None:
        head = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nevals\r\n'
        head += b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"
        is_first_over = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield head + b"y" * (1500 << 10)
            await is_first_over.wait()
            yield b"\r\n--x--\r\n"

        async def whole() -> AsyncIterator[bytes]:
            yield head + b"y" * (1500 << 10) + b"\r\n--x--\r\n"

        first = asyncio.ensure_future(posted(site, slow()))
        uploads_folder = site.services.dispatcher.files.uploads
        while not any(file.stat().st_size > 1 << 20 for file in uploads_folder.glob("*")):
            await asyncio.sleep(0.01)
        status, said = await posted(site, whole())
        assert status == 413, said
        assert "those that are coming in" in said
        is_first_over.set()
        assert (await first)[0] == 200
        assert not any(site.services.arriving.values())
        assert len([*uploads_folder.iterdir()]) == 1

    play(scene, engine=False, file_mib=2, files_mib=2)


def test_an_upload_is_never_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(site: Site) -> None:
        write, arriving = site.services.store.write, []

        async def watched(*asked: Any) -> Any:
            arriving.append(sum(site.services.arriving.values()))
            return await write(*asked)

        async def whole() -> AsyncIterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nevals\r\n'
            yield b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\nyyy\r\n--x--\r\n"

        monkeypatch.setattr(site.services.store, "write", watched)
        assert (await posted(site, whole()))[0] == 200
        assert arriving == [0], "while its row is written, it counts as a row alone"

    play(scene, engine=False)


def test_nobody_else_on_the_machine_reads_uploads() -> None:
    async def scene(site: Site) -> None:
        assert (await upload(site)).status_code == 200
        assert site.services.dispatcher.files.uploads.stat().st_mode & 0o077 == 0

    play(scene, engine=False)


def test_a_model_that_a_job_begins_at_is_not_deleted_under_it() -> None:
    async def scene(site: Site) -> None:
        with_config(site)
        key_id = (await create(site)).json()["organization_id"]
        name, path = "ft:fake:test::1", "tinker://r/sampler_weights/a"
        state = "tinker://r/weights/a"
        model = TunedModel(
            name=name,
            key_id=key_id,
            job_id="ftjob-1",
            base_model="fake",
            step=1,
            is_final=True,
            path=path,
            state_path=state,
            metrics={},
            created=1.0,
        )
        write_now(site.services.store, tuned_models.add, model)
        begun: JobPlan = plan(model=name, start_path=state)
        job = JobRow(id=jobs.new_id(), key_id=key_id, created=1.0, plan=begun)
        write_now(site.services.store, jobs.create, job, 9)
        refused = await site.client.delete(f"http://site/v1/models/{name}")
        assert refused.status_code == 409
        assert job.id in refused.json()["error"]["message"]
        by_path = await site.client.delete("http://site/api/v1/training_runs/r/checkpoints/weights/a")
        assert by_path.status_code == 409
        assert job.id in by_path.text
        await site.services.desk.cancel(job.id)
        assert (await site.client.delete(f"http://site/v1/models/{name}")).status_code == 200

    play(scene, engine=False)


def test_an_alias_called_ft_hides_no_tuned_model() -> None:
    names = ModelNames({"tiny": Path("/x")}, {"ft": "tiny"})
    assert names.find_base("ft") == "tiny"
    assert names.find_base("ft:tiny:ann::1") is None

"""Bodies of files, and their names, are synced before the rows that name them: of uploads, and of results of jobs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Connection

from loreloop.host.job_traces import JobTraces
from loreloop.protocol.errors import LoreloopError
from loreloop.store import uploads
from loreloop.store.files import Files
from tests.http.site import Site, play


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced below the folder of bodies, and what got a row, in this order."""
    noted: list[str] = []
    add = uploads.add

    def added(connection: Connection, *arguments: Any) -> Any:
        noted.append("row")
        return add(connection, *arguments)

    monkeypatch.setattr("loreloop.store.files.sync_path", lambda path: noted.append("body"))
    monkeypatch.setattr("loreloop.store.files.sync_names", lambda path, n_levels: noted.append(f"name {path.name[:5]}"))
    monkeypatch.setattr(uploads, "add", added)
    return noted


def test_an_upload_is_on_the_disk_before_its_row(happened: list[str]) -> None:
    async def scene(site: Site) -> None:
        happened.clear()
        form = {"files": {"file": ("a.txt", b"content")}, "data": {"purpose": "user_data"}}
        made = await site.client.post("http://site/v1/files", **form)  # type: ignore[arg-type]
        assert made.status_code == 200, made.text
        assert happened == ["body", "name file-", "row"]

    play(scene)


def test_the_metrics_of_a_job_are_on_the_disk_before_the_job_ends(happened: list[str]) -> None:
    async def scene(site: Site) -> None:
        happened.clear()
        job = cast(Any, SimpleNamespace(id="none", key_id="none", plan=SimpleNamespace(kind="supervised")))
        # There is no such job, which is found out by the write that would end it.
        with pytest.raises(LoreloopError):
            await JobTraces(site.services.dispatcher).succeed(job)
        assert happened == ["body", "name file-"]

    play(scene)


def test_a_body_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, synced = Files(tmp_path), list[Path]()
    arriving = files.arriving_upload()
    arriving.write_bytes(b"content")
    monkeypatch.setattr("loreloop.store.files.sync_path", lambda path: synced.append(path) or path.stat())
    monkeypatch.setattr("loreloop.store.files.sync_names", lambda path, n_levels: synced.append(path))
    files.put_upload(arriving, "file-1")
    assert synced == [arriving, files.upload("file-1")]
    assert files.upload("file-1").read_bytes() == b"content"

"""OpenAI's files with the unmodified client: uploaded, listed by pages, given out, deleted; and forms that are none."""

from __future__ import annotations

import time

import httpx
import openai
import pytest

from loreloop.cli.server import RunningServer
from tests.jobs.rig import DEMONSTRATIONS, client_of, started, supervised, uploaded
from tests.sdk.clients import made_key


def test_a_file_comes_back_as_it_went(client: openai.OpenAI) -> None:
    made = client.files.create(file=("räksmörgås.jsonl", DEMONSTRATIONS), purpose="fine-tune")
    assert (made.filename, made.bytes, made.purpose) == ("räksmörgås.jsonl", len(DEMONSTRATIONS), "fine-tune")
    assert (made.status, made.expires_at) == ("processed", None)
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == DEMONSTRATIONS
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.files.delete(made.id)


def test_any_bytes_come_back_as_they_went(client: openai.OpenAI) -> None:
    contents = bytes(range(256)) * 10_000 + b"\r\n--boundary--\r\n"
    made = client.files.create(file=('odd name".bin', contents), purpose="user_data")
    assert client.files.content(made.id).read() == contents


def test_a_name_with_folders_is_a_name(client: openai.OpenAI) -> None:
    made = client.files.create(file=("../../etc/passwd", b"x"), purpose="user_data")
    assert made.filename == "passwd"


def test_files_are_listed_by_pages(server: RunningServer) -> None:
    client = client_of(server, made_key(server))
    made = [client.files.create(file=(f"{n}", b"x"), purpose=("user_data", "evals")[n % 2]).id for n in range(7)]
    assert [file.id for file in client.files.list()] == made[::-1]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1], "the client asks for page after page"
    assert [file.id for file in client.files.list(limit=3, order="asc")] == made
    assert [file.id for file in client.files.list(purpose="evals", limit=2)] == made[1::2][::-1]
    page = client.files.list(limit=2, after=made[5])
    assert [file.id for file in page.data] == [made[4], made[3]]
    assert page.has_more
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"after": "file-x"}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError):
            client.files.list(**wrong)  # type: ignore[arg-type]


def test_a_file_expires(client: openai.OpenAI) -> None:
    made = client.files.create(
        file=("a", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert 3590 < (made.expires_at or 0) - time.time() < 3610
    with pytest.raises(openai.BadRequestError, match="expires_after"):
        client.files.create(file=("a", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 5})


def test_a_file_that_a_job_needs_stays(client: openai.OpenAI) -> None:
    job = started(client, method=supervised(n_epochs=50, batch_size=1))
    with pytest.raises(openai.ConflictError, match=f"needed by the job {job.id}"):
        client.files.delete(job.training_file)
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(job.training_file).deleted


def test_other_purposes_are_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="The purpose 'batch' is not served"):
        client.files.create(file=("a", b"x"), purpose="batch")


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("application/json", b"{}", "multipart/form-data"),
        ("multipart/form-data", b"", "multipart/form-data"),
        ("multipart/form-data; boundary=x", b"nothing of the kind", "cannot be read|no field"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; name=purpose\r\n\r\nevals\r\n--x--",
            "no field `file`",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n' * 2 + b"--x--",
            "two files",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"y" * 70_000 + b"\r\n--x--",
            "only the file may be long",
        ),
    ],
)
def test_a_form_that_is_none_is_refused(server: RunningServer, kind: str, body: bytes, message: str) -> None:
    headers = {"authorization": f"Bearer {server.key}", "content-type": kind}
    answer = httpx.post(f"{server.url}/v1/files", content=body, headers=headers, trust_env=False)
    assert answer.status_code == 400
    assert any(part in answer.json()["error"]["message"] for part in message.split("|"))


def test_a_broken_upload_leaves_nothing(server: RunningServer) -> None:
    folder = server.data / "files"
    before = set(folder.iterdir()) if folder.exists() else set()

    def parts():  # type: ignore[no-untyped-def]
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"y" * 100_000
        raise ConnectionError

    headers = {"authorization": f"Bearer {server.key}", "content-type": "multipart/form-data; boundary=x"}
    with pytest.raises(ConnectionError):
        httpx.post(f"{server.url}/v1/files", content=parts(), headers=headers, trust_env=False)
    client_of(server).files.list()
    deadline = time.monotonic() + 5
    while set(folder.iterdir()) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(folder.iterdir()) == before


def test_uploads_are_of_their_key(server: RunningServer, client: openai.OpenAI) -> None:
    file_id = uploaded(client)
    assert file_id not in [file.id for file in client_of(server, made_key(server)).files.list()]

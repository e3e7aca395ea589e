"""`loreloop jobs` and `loreloop files` on the data folder of a running server, and without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner

from loreloop.cli.main import cli
from loreloop.cli.server import RunningServer
from loreloop.protocol.errors import LoreloopError
from tests.jobs.rig import DEMONSTRATIONS, ended, started, step_of, succeeded, supervised, until


def run(server: RunningServer | Path, *words: str) -> str:
    data = server if isinstance(server, Path) else server.data
    result = CliRunner().invoke(cli, [*words, "--data", str(data)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def read(server: RunningServer | Path, *words: str) -> Any:
    return json.loads(run(server, *words, "--json"))


def test_jobs_are_listed_shown_and_told(server: RunningServer, client: openai.OpenAI) -> None:
    job = succeeded(client, started(client, method=supervised(n_epochs=1, batch_size=4)).id)
    newest = read(server, "jobs", "list")[0]
    assert (newest["job"], newest["status"], newest["step"]) == (job.id, "succeeded", 2)
    shown = read(server, "jobs", "show", job.id)
    assert (shown["n_epochs"], shown["batch_size"], shown["seed"]) == (1, 4, job.seed)
    assert [model["model"] for model in shown["models"]] == [job.fine_tuned_model]
    assert job.fine_tuned_model in run(server, "jobs", "show", job.id)
    assert f"seed                     {job.seed}\n" in run(server, "jobs", "show", job.id)
    events = read(server, "jobs", "events", job.id)
    assert events[0]["message"].startswith("Created")
    assert events[-1]["message"] == "The job has successfully completed"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_a_job_tells_the_command_that_repeats_it(server: RunningServer, client: openai.OpenAI) -> None:
    job = started(client, method=supervised(n_epochs=1, batch_size=4), suffix="it's", metadata={"squad": "a"})
    command = read(server, "jobs", "show", job.id)["repeat"]
    environment = os.environ | {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": server.key}
    made = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=True)
    again = succeeded(client, json.loads(made.stdout)["id"])
    same = ("model", "training_file", "method", "seed", "suffix", "metadata")
    assert again.model_dump(include=set(same)) == job.model_dump(include=set(same))
    first, second = (read(server, "jobs", "show", one)["repeat"] for one in (job.id, again.id))
    assert first == second


def test_a_job_is_followed_to_its_end(server: RunningServer, client: openai.OpenAI) -> None:
    job = started(client, method=supervised(n_epochs=4, batch_size=2))
    for words in (["jobs", "events"], ["jobs", "show"]):
        command = [sys.executable, "-m", "loreloop.cli", *words, job.id, "--follow", "--data", str(server.data)]
        followed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert "successfully completed" in followed.stdout + followed.stderr
    assert "[########################] 16/16" in followed.stderr


def test_jobs_are_paused_resumed_and_cancelled(server: RunningServer, client: openai.OpenAI) -> None:
    job = started(client, method=supervised(n_epochs=50, batch_size=1))
    until(lambda: step_of(client, job.id) >= 1)
    assert read(server, "jobs", "pause", job.id)[0]["status"] == "paused"
    assert read(server, "jobs", "resume", job.id)[0]["status"] in ("queued", "running")
    assert read(server, "jobs", "cancel", job.id)[0]["status"] == "cancelled"
    assert ended(client, job.id).status == "cancelled"
    with pytest.raises(LoreloopError, match="nothing to cancel"):
        run(server, "jobs", "cancel", job.id)


def test_files_are_brought_in_and_deleted(server: RunningServer, client: openai.OpenAI, tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_bytes(DEMONSTRATIONS)
    made = read(server, "files", "upload", str(file), "--key", "local")[0]
    assert (made["examples"], made["forms"]) == (8, "demonstrations")
    assert client.files.content(made["file"]).read() == DEMONSTRATIONS
    succeeded(client, client.fine_tuning.jobs.create(model="tiny", training_file=made["file"]).id)
    listed = read(server, "files", "list")
    assert made["file"] in [each["file"] for each in listed]
    run(server, "files", "delete", made["file"])
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made["file"])


def test_a_file_is_brought_in_while_no_server_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, file = tmp_path / "data", tmp_path / "examples.jsonl"
    file.write_bytes(b"nothing\n")
    run(data, "keys", "create", "ann")
    with pytest.raises(LoreloopError, match="Line 1: is not JSON"):
        run(data, "files", "upload", str(file))
    file.write_bytes(DEMONSTRATIONS)
    synced: list[Path] = []
    monkeypatch.setattr("loreloop.store.files.sync_path", synced.append)
    monkeypatch.setattr("loreloop.store.files.sync_names", lambda path, n_levels: synced.append(path))
    made = read(data, "files", "upload", str(file))[0]
    assert [path.parent for path in synced] == [data / "files"] * 2
    assert (data / "files" / made["file"]).read_bytes() == DEMONSTRATIONS
    run(data, "files", "delete", made["file"])
    assert list((data / "files").iterdir()) == []

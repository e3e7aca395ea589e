"""Fine-tuning jobs with the unmodified `openai` client against a live server: from a file to a model that answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import tinker
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from loreloop.cli.server import RunningServer
from tests.jobs.rig import (
    DEMONSTRATIONS,
    as_lines,
    asked,
    client_of,
    ended,
    messages,
    result_rows,
    started,
    step_of,
    steps,
    succeeded,
    supervised,
    told,
    until,
    uploaded,
)
from tests.sdk.clients import made_key, prompt, service
from tests.sdk.test_adapters_of_others import key_id, made, run

IN_FLIGHT = 2
LONG = supervised(n_epochs=50, batch_size=1)


@pytest.fixture(scope="module")
def tuned(server: RunningServer) -> str:
    """The name of a model that a job has made."""
    client = client_of(server)
    return succeeded(client, started(client, suffix="a b", method=supervised(n_epochs=2)).id).fine_tuned_model or ""


def test_a_job_tells_how_it_went(client: openai.OpenAI) -> None:
    held_out = uploaded(client, as_lines([told("say 9", "it is 9")]))
    job = started(
        client,
        validation_file=held_out,
        seed=3,
        metadata={"who": "ann"},
        method=supervised(n_epochs=2, batch_size=4, learning_rate_multiplier=2),
    )
    done = succeeded(client, job.id)
    assert (done.seed, done.metadata, done.validation_file) == (3, {"who": "ann"}, held_out)
    assert done.method is not None
    assert done.method.to_dict() == supervised(n_epochs=2, batch_size=4, learning_rate_multiplier=2)
    assert (done.trained_tokens or 0) > 0
    assert (done.finished_at or 0) >= done.created_at
    rows = result_rows(client, done)
    assert [*rows[0]][:5] == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[0]["train_loss"]) > 0 < float(rows[-1]["valid_loss"])
    said = messages(client, job.id)
    assert said[0].startswith("Created fine-tuning job")
    assert said[-1] == "The job has successfully completed"
    metrics = [event for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"]
    assert {"step", "train_loss"} <= set(metrics[0].data)  # type: ignore[arg-type]


def test_the_same_seed_makes_the_same_model_and_another_another(client: openai.OpenAI) -> None:
    rows = []
    for seed in (1, 1, 2):
        done = succeeded(client, started(client, seed=seed, method=supervised(n_epochs=2, batch_size=2)).id)
        rows.append([row["train_loss"] for row in result_rows(client, done)])
    assert rows[0] == rows[1] != rows[2]


def test_the_older_form_of_hyperparameters_is_understood(client: openai.OpenAI) -> None:
    done = succeeded(client, started(client, hyperparameters={"n_epochs": 1, "batch_size": "auto"}).id)
    assert done.hyperparameters.n_epochs == 1
    assert isinstance(done.hyperparameters.batch_size, int)


def test_a_tuned_model_answers_on_every_route(server: RunningServer, client: openai.OpenAI, tuned: str) -> None:
    assert tuned.startswith("ft:tiny:local:a-b:")
    assert tuned in [model.id for model in client.models.list()]
    assert client.models.retrieve(tuned).id == tuned
    assert asked(client, tuned) is not None
    client.completions.create(model=tuned, prompt="it is", max_tokens=2)
    client.responses.create(model=tuned, input="say 1", max_output_tokens=16)
    claude = anthropic.Anthropic(base_url=f"{server.url}/anthropic/api", api_key=server.key)
    claude.messages.create(model=tuned, max_tokens=2, messages=[{"role": "user", "content": "say 1"}])
    sampler = (
        service(server).create_sampling_client(base_model=tuned).result()
    )  # the SDK takes other paths than tinker:// so
    params = tinker.SamplingParams(max_tokens=2, temperature=0.0)
    assert sampler.sample(prompt([11, 12]), num_samples=1, sampling_params=params).result().sequences


def test_every_epoch_leaves_a_model_that_answers(client: openai.OpenAI) -> None:
    job = started(client, method=supervised(n_epochs=3, batch_size=4))
    done = succeeded(client, job.id)
    made = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
    assert [each.step_number for each in made] == [6, 4, 2]
    assert made[0].fine_tuned_model_checkpoint == done.fine_tuned_model
    assert made[1].fine_tuned_model_checkpoint == f"{done.fine_tuned_model}:ckpt-step-4"
    for each in made:
        assert (each.metrics.train_loss or 0) > 0
        asked(client, each.fine_tuned_model_checkpoint)


def test_a_job_begins_at_a_tuned_model_or_at_a_saved_state(
    server: RunningServer, client: openai.OpenAI, tuned: str
) -> None:
    once = {"method": supervised(n_epochs=1, batch_size=8)}
    first = loss_of(client, succeeded(client, started(client, **once).id))
    path = service(server).create_training_client_from_state(tuned).result().save_state("again").result().path
    for model in (tuned, path):
        done = succeeded(client, started(client, model=model, **once).id)
        assert done.model == model
        assert (done.fine_tuned_model or "").startswith("ft:tiny:local::")
        assert loss_of(client, done) < first, "before its only step it knows the examples already"


def test_a_job_begins_at_an_adapter_of_others(
    server: RunningServer, client: openai.OpenAI, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = made(tiny_folder, tmp_path / "theirs")
    imported = run(server, "models", "import-adapter", str(folder), "--base", "tiny", "--key", key_id(server))
    paths = re.findall(r"tinker://\S+", imported.stdout)
    assert len(paths) == 2
    for path in paths:
        succeeded(client, started(client, model=path, method=supervised(n_epochs=1)).id)


def test_a_deployment_may_mean_a_tuned_model(server: RunningServer, client: openai.OpenAI, tuned: str) -> None:
    assert run(server, "deploy", "set", "sums", tuned).returncode == 0
    assert asked(client, "sums") == asked(client, tuned)
    with pytest.raises(openai.ConflictError, match="the deployment sums answers with"):
        client.models.delete(tuned)
    assert run(server, "deploy", "delete", "sums").returncode == 0


def loss_of(client: openai.OpenAI, job: FineTuningJob) -> float:
    """Of a job's first step, in nats a token."""
    return float(result_rows(client, job)[0]["train_loss"])


def test_a_job_begins_from_a_checkpoint_amid_another(client: openai.OpenAI) -> None:
    method = supervised(n_epochs=2, batch_size=8, learning_rate_multiplier=10)
    first = succeeded(client, started(client, method=method).id)
    amid = list(client.fine_tuning.jobs.checkpoints.list(first.id))[-1].fine_tuned_model_checkpoint
    assert amid.endswith(":ckpt-step-1")
    job = started(client, model=amid, method=supervised(n_epochs=2, batch_size=8))
    # Its weights are the other job's after that step, and what that measured at its next one is measured here at first.
    done = succeeded(client, job.id)
    assert loss_of(client, done) == pytest.approx(float(result_rows(client, first)[1]["train_loss"]), abs=1e-5)
    assert (done.fine_tuned_model or "").startswith("ft:tiny:")
    assert client.models.delete(amid).deleted


def test_a_checkpoint_that_a_job_begins_at_is_not_deleted_under_it(client: openai.OpenAI) -> None:
    first = succeeded(client, started(client, method=supervised(n_epochs=2, batch_size=8)).id)
    amid = list(client.fine_tuning.jobs.checkpoints.list(first.id))[-1].fine_tuned_model_checkpoint
    job = started(client, model=amid, method=LONG)
    with pytest.raises(openai.ConflictError, match="begins at"):
        client.models.delete(amid)
    client.fine_tuning.jobs.cancel(job.id)
    assert client.models.delete(amid).deleted


def test_a_deleted_model_is_gone(client: openai.OpenAI) -> None:
    name = succeeded(client, started(client, method=supervised(n_epochs=1)).id).fine_tuned_model or ""
    assert client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        asked(client, name)
    with pytest.raises(openai.BadRequestError, match="no fine-tuned model"):
        client.models.delete("tiny")


def test_a_cancelled_job_makes_no_step_more(client: openai.OpenAI) -> None:
    job = started(client, method=LONG)
    until(lambda: step_of(client, job.id) >= 3)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    succeeded(client, started(client, method=supervised(n_epochs=1)).id)  # so that time has passed
    said = messages(client, job.id)
    behind = [each for each in said[said.index("The job was cancelled.") :] if each.startswith("Step")]
    assert len(behind) <= IN_FLIGHT + 1, "those that were handed in, and the one that was just told"
    cancelled = client.fine_tuning.jobs.retrieve(job.id)
    assert (cancelled.status, cancelled.fine_tuned_model, cancelled.error) == ("cancelled", None, None)
    with pytest.raises(openai.ConflictError, match="nothing to cancel"):
        client.fine_tuning.jobs.cancel(job.id)


def test_a_paused_job_goes_on_where_it_was(client: openai.OpenAI) -> None:
    job = started(client, method=supervised(n_epochs=8, batch_size=1))
    until(lambda: step_of(client, job.id) >= 3)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    succeeded(client, started(client, method=supervised(n_epochs=1)).id)
    rested = len(steps(client, job.id))
    assert rested < 64
    client.fine_tuning.jobs.resume(job.id)
    succeeded(client, job.id)
    assert steps(client, job.id) == [*range(1, 65)], "no step is made twice"


def test_a_job_that_waits_is_paused_and_cancelled_at_once(client: openai.OpenAI) -> None:
    running = [started(client, method=LONG) for _ in range(2)]
    waiting = started(client)
    assert waiting.status == "queued"
    assert client.fine_tuning.jobs.pause(waiting.id).status == "paused"
    with pytest.raises(openai.ConflictError, match="nothing to pause"):
        client.fine_tuning.jobs.pause(waiting.id)
    assert client.fine_tuning.jobs.resume(waiting.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"
    assert steps(client, waiting.id) == []
    for job in running:
        client.fine_tuning.jobs.cancel(job.id)


def test_jobs_run_beside_one_another(client: openai.OpenAI) -> None:
    jobs = [started(client, method=LONG) for _ in range(2)]
    until(lambda: all(step_of(client, job.id) > 0 for job in jobs))
    for job in jobs:
        client.fine_tuning.jobs.cancel(job.id)


def test_what_is_told_is_what_the_types_of_the_client_demand(server: RunningServer, tuned: str) -> None:
    headers = {"authorization": f"Bearer {server.key}"}

    def told(path: str) -> Any:
        return httpx.get(f"{server.url}/v1{path}", headers=headers, timeout=20, trust_env=False).json()

    for job in told("/fine_tuning/jobs")["data"]:
        # The client builds its objects without a look; these calls look. It knows no pause.
        FineTuningJob.model_validate(job | ({"status": "queued"} if job["status"] == "paused" else {}))
        for event in told(f"/fine_tuning/jobs/{job['id']}/events")["data"]:
            FineTuningJobEvent.model_validate(event)
        for point in told(f"/fine_tuning/jobs/{job['id']}/checkpoints")["data"]:
            FineTuningJobCheckpoint.model_validate(point)
    for file in told("/files")["data"]:
        FileObject.model_validate(file)


def test_the_log_has_no_notes_to_programmers(server: RunningServer, tuned: str) -> None:
    assert "DEPRECATED" not in (server.data / "loreloop.log").read_text()


def test_what_is_of_another_key_looks_missing(server: RunningServer, client: openai.OpenAI, tuned: str) -> None:
    other = client_of(server, made_key(server))
    job = next(job for job in client.fine_tuning.jobs.list() if job.fine_tuned_model == tuned)
    looks = [
        lambda: other.fine_tuning.jobs.retrieve(job.id),
        lambda: other.fine_tuning.jobs.cancel(job.id),
        lambda: other.fine_tuning.jobs.list_events(job.id),
        lambda: other.fine_tuning.jobs.checkpoints.list(job.id),
        lambda: other.files.retrieve(job.training_file),
        lambda: other.files.content(job.training_file),
        lambda: other.files.delete(job.training_file),
        lambda: other.models.retrieve(tuned),
        lambda: other.models.delete(tuned),
        lambda: asked(other, tuned),
        lambda: started(other, model=tuned),
        lambda: other.fine_tuning.jobs.create(model="tiny", training_file=job.training_file),
    ]
    for look in looks:
        with pytest.raises(openai.NotFoundError):
            look()
    assert list(other.fine_tuning.jobs.list()) == []
    assert tuned not in [model.id for model in other.models.list()]


def test_events_come_as_they_happen(server: RunningServer, client: openai.OpenAI) -> None:
    job = started(client, method=supervised(n_epochs=2, batch_size=2))
    headers = {"authorization": f"Bearer {server.key}"}
    url = f"{server.url}/v1/fine_tuning/jobs/{job.id}/events?stream=true"
    said = list[str]()
    with httpx.stream("GET", url, headers=headers, timeout=60, trust_env=False) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                said.append(json.loads(line[6:])["message"])
    assert said[-1] == "The job has successfully completed"
    assert said == messages(client, job.id)


def test_a_stream_of_events_ends_with_its_key(server: RunningServer) -> None:
    secret = run(server, "keys", "create", "leaver").stdout.split()[-1]
    leaver = client_of(server, secret)
    job = started(leaver, method=LONG)
    leaver.fine_tuning.jobs.pause(job.id)
    url = f"{server.url}/v1/fine_tuning/jobs/{job.id}/events?stream=true"
    headers = {"authorization": f"Bearer {secret}"}
    with httpx.stream("GET", url, headers=headers, timeout=60, trust_env=False) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: {")
        assert run(server, "keys", "revoke", "leaver").returncode == 0
        began = time.monotonic()
        assert "data: [DONE]" not in list(lines)
    assert time.monotonic() - began < 30


def test_jobs_are_found_by_their_metadata(client: openai.OpenAI) -> None:
    with_it = [started(client, metadata={"team": "a", "x": ""}), started(client, metadata={"team": "b"})]
    without = started(client)
    found = client.fine_tuning.jobs.list(metadata={"team": "a"})
    assert [job.id for job in found] == [with_it[0].id]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"x": ""})] == [with_it[0].id]
    bare = client.fine_tuning.jobs.list(extra_query={"metadata": "null"}, limit=100)
    assert without.id in [job.id for job in bare]
    assert with_it[1].id not in [job.id for job in client.fine_tuning.jobs.list(extra_query={"metadata": "null"})]
    for job in (*with_it, without):
        ended(client, job.id)


def test_a_key_that_is_revoked_takes_its_jobs_along(server: RunningServer, client: openai.OpenAI) -> None:
    secret = made_key(server)
    other = client_of(server, secret)
    job = started(other, DEMONSTRATIONS, method=LONG)
    until(lambda: step_of(other, job.id) >= 1)
    listed = subprocess.run(
        [sys.executable, "-m", "loreloop.cli", "keys", "list", "--json", "--data", str(server.data)],
        capture_output=True,
        text=True,
        check=True,
    )
    newest = json.loads(listed.stdout)[-1]["id"]
    subprocess.run(
        [sys.executable, "-m", "loreloop.cli", "keys", "revoke", newest, "--data", str(server.data)], check=True
    )
    succeeded(client, started(client, method=supervised(n_epochs=1)).id)  # other jobs go on
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "loreloop.cli",
            "jobs",
            "show",
            job.id,
            "--follow",
            "--json",
            "--data",
            str(server.data),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    told = json.loads(shown.stdout)
    assert told["status"] == "failed"
    assert "The key of this job is refused" in told["error"]

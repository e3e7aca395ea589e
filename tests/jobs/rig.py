"""Jobs over the unmodified `openai` client: small files, waiting for ends, and what the data folder holds."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

from loreloop.cli.server import RunningServer

OVER = ("succeeded", "failed", "cancelled")


def client_of(server: RunningServer, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key or server.key, max_retries=0)


def patient_client(server: RunningServer) -> openai.OpenAI:
    """One that asks again while the server's processes come back."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=20)


def told(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def as_lines(examples: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(example).encode() + b"\n" for example in examples)


DEMONSTRATIONS = as_lines([told(f"say {number}", f"it is {number}") for number in range(8)])


def uploaded(client: openai.OpenAI, contents: bytes = DEMONSTRATIONS) -> str:
    return client.files.create(file=("examples.jsonl", contents), purpose="fine-tune").id


def started(client: openai.OpenAI, contents: bytes = DEMONSTRATIONS, **fields: Any) -> FineTuningJob:
    return client.fine_tuning.jobs.create(**{"model": "tiny", "training_file": uploaded(client, contents)} | fields)


def supervised(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def ended(client: openai.OpenAI, job_id: str, seconds: float = 120) -> FineTuningJob:
    def over() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in OVER else None

    return until(over, seconds)


def succeeded(client: openai.OpenAI, job_id: str, seconds: float = 120) -> FineTuningJob:
    job = ended(client, job_id, seconds)
    assert job.status == "succeeded", job.error
    return job


def messages(client: openai.OpenAI, job_id: str) -> list[str]:
    """What a job's events say, in the order in which they happened."""
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)][::-1]


def steps(client: openai.OpenAI, job_id: str) -> list[int]:
    """The steps that a job has made, in the order in which it did, those that it made twice included."""
    return [int(said.split()[1].strip(":")) for said in messages(client, job_id) if said.startswith("Step ")]


def step_of(client: openai.OpenAI, job_id: str) -> int:
    return client.fine_tuning.jobs.retrieve(job_id).step  # type: ignore[attr-defined]


def result_rows(client: openai.OpenAI, job: FineTuningJob) -> list[dict[str, str]]:
    return list(csv.DictReader(client.files.content(job.result_files[0]).text.splitlines()))


def asked(client: openai.OpenAI, model: str, question: str = "say 1") -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=8, temperature=0
    )
    return answer.choices[0].message.content or ""


def weights(server: RunningServer, client: openai.OpenAI, model: str) -> bytes:
    """The adapter that answers by this name."""
    return adapter_of(server, client.models.retrieve(model).root)  # type: ignore[attr-defined]


def adapter_of(server: RunningServer, path: str) -> bytes:
    """The file of a checkpoint's adapter."""
    run, kind, name = path.removeprefix("tinker://").split("/")
    folder = server.data / "checkpoints" / run.replace(":", "_") / kind / name
    return (folder / "adapter_model.safetensors").read_bytes()

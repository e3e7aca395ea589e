"""Fine-tuning jobs with the unmodified `openai` client against a live server: from a file to a model that answers."""

import json
import time
from pathlib import Path

import openai
import pytest

from loreloop.cli.server import RunningServer


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


def lines(n: int = 8) -> bytes:
    return b"".join(
        json.dumps(
            {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"it is {i}"}]}
        ).encode()
        + b"\n"
        for i in range(n)
    )


def ended(client: openai.OpenAI, job_id: str, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.1)
    raise AssertionError([event.message for event in client.fine_tuning.jobs.list_events(job_id)])


def test_a_file_becomes_a_model(client: openai.OpenAI, tmp_path: Path) -> None:
    file = client.files.create(file=("a.jsonl", lines()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, suffix="sums")
    assert job.status in ("queued", "running")
    job = ended(client, job.id)
    assert job.status == "succeeded", job.error
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "say 1"}], max_tokens=4
    )
    assert answer.choices[0].message.content is not None
    print([e.message for e in client.fine_tuning.jobs.list_events(job.id)])
    print(client.files.content(job.result_files[0]).text)
    print(client.fine_tuning.jobs.checkpoints.list(job.id))
    print(job)

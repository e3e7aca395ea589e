"""Any process of a server is killed amid a job: it goes on from where it was kept, and ends as if nothing had been.

What it ends with are the weights of a plain loop over the SDK.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from loreloop.cli.server import RunningServer, running_server
from loreloop.learn.files import demonstrations
from loreloop.learn.jobs.orders import SAVE_EVERY, plan_of
from loreloop.learn.rendering import renderer_of
from loreloop.store import jobs
from loreloop.store.store import open_database
from tests.jobs.rig import (
    DEMONSTRATIONS,
    adapter_of,
    patient_client,
    result_rows,
    started,
    step_of,
    steps,
    succeeded,
    supervised,
    until,
    weights,
)
from tests.processes import children_called
from tests.sdk.clients import service

LONG = {"method": supervised(n_epochs=10, batch_size=1), "seed": 7}
N_STEPS, IN_FLIGHT = 80, 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    (data / "models").mkdir()
    (data / "models" / "tiny").symlink_to(tiny_folder)
    settings = ["--model", "tiny", "--precision", "fp32", "--threads", "1", "--deterministic"]
    with running_server(str(data), settings) as running:
        yield running


def kill(server: RunningServer, module: str) -> None:
    (victim,) = children_called(server.pid, f"loreloop.cli.{module}")
    victim.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def calm(server: RunningServer) -> bytes:
    """The weights of the same job, left in peace."""
    client = patient_client(server)
    return weights(server, client, succeeded(client, started(client, **LONG).id).fine_tuned_model or "")


@pytest.mark.parametrize("module", ["job_process", "http_process", "engine_process"])
def test_a_job_outlives_any_process(server: RunningServer, calm: bytes, module: str) -> None:
    client = patient_client(server)
    job = started(client, **LONG)
    until(lambda: step_of(client, job.id) >= SAVE_EVERY + 5)
    kill(server, module)
    done = succeeded(client, job.id)
    assert [int(row["step"]) for row in result_rows(client, done)] == [*range(1, N_STEPS + 1)]
    made = steps(client, job.id)
    assert len(made) - N_STEPS <= SAVE_EVERY + IN_FLIGHT, "it repeats what came after it was kept, and no more"
    assert weights(server, client, done.fine_tuned_model or "") == calm


@pytest.mark.filterwarnings("ignore")
def test_its_weights_are_those_of_a_plain_loop_bit_for_bit(
    server: RunningServer, calm: bytes, tiny_folder: Path
) -> None:
    job = next(job for job in patient_client(server).fine_tuning.jobs.list() if job.status == "succeeded")
    with open_database(server.data).begin() as connection:
        plan = plan_of(jobs.of_anyone(connection, job.id).plan)
    renderer, examples = renderer_of(tiny_folder), list(demonstrations(DEMONSTRATIONS.splitlines()))
    client = service(server).create_lora_training_client("tiny", rank=plan.rank, seed=plan.seed).result()
    for step in range(N_STEPS):
        batch = [datum for example in plan.batch(step, examples) for datum in renderer.demonstrations(example)]
        passed = client.forward_backward(batch, "cross_entropy")
        rate = plan.learning_rate * (1 - step / N_STEPS)
        stepped = client.optim_step(tinker.AdamParams(learning_rate=rate, beta1=0.9, beta2=0.95, eps=1e-8))
        passed.result(), stepped.result()
    plain = client.save_weights_for_sampler("plain").result().path
    assert adapter_of(server, plain) == calm

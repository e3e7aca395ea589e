"""An engine dies while it trains on images; the next one packs and computes them as they were."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from loreloop.cli.server import RunningServer, running_server
from tests.sdk.test_recovery import process
from tests.tiny_vision import make_tiny_vision_model, picture
from tests.vision.test_vision_sdk import datum, ids, shown

DATA = [
    datum(ids(11), shown(picture(64, 96, seed=seed)), ids(12, 13), n_tokens=9, answer=40 + seed) for seed in range(5)
]


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RunningServer]:
    make_tiny_vision_model(tmp_path / "models" / "eyes", "qwen3_vl")
    with running_server(str(tmp_path), ["--model", "eyes", "--precision", "fp32", "--threads", "1"]) as running:
        yield running


def fit(client: tinker.TrainingClient, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(client.forward_backward(DATA, "cross_entropy").result().metrics["loss:sum"])
        client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    return losses


def test_a_killed_engine_changes_nothing(own_server: RunningServer) -> None:
    service = tinker.ServiceClient(base_url=own_server.url, api_key=own_server.key)
    looked = tinker.ModelInput(chunks=[shown(picture(64, 64, seed=9))])  # an image that the next engine never sees
    service.create_sampling_client(base_model="eyes").result().sample(
        looked, 1, tinker.SamplingParams(max_tokens=1)
    ).result()
    undisturbed = fit(service.create_lora_training_client("eyes", rank=8, seed=1).result(), 4)
    client = service.create_lora_training_client("eyes", rank=8, seed=1).result()
    losses = fit(client, 2)
    process(own_server, "engine_process").kill()
    assert losses + fit(client, 2) == undisturbed

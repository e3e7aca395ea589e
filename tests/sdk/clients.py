"""The unmodified SDK against a test server: clients and small data."""

import os
import subprocess
import sys
from collections.abc import Sequence

import tinker

from loreloop.cli.server import RunningServer

os.environ["TINKER_TELEMETRY"] = "0"

IDS = list(range(10, 40))
GREEDY = tinker.SamplingParams(max_tokens=8, temperature=0.0, stop=[])


def service(server: RunningServer, key: str | None = None) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=server.url, api_key=key or server.key)


def made_key(server: RunningServer, *arguments: str) -> str:
    command = [sys.executable, "-m", "loreloop.cli", "keys", "create", "other", "--data", str(server.data), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def trainer(server: RunningServer, **lora: int | bool) -> tinker.TrainingClient:
    return service(server).create_lora_training_client("tiny", **{"rank": 8, "seed": 1, **lora}).result()


def prompt(ids: Sequence[int]) -> tinker.ModelInput:
    return tinker.ModelInput.from_ints(list(ids))


def datum(ids: Sequence[int] = IDS, weight: float = 1.0) -> tinker.Datum:
    inputs = {"target_tokens": list(ids[1:]), "weights": [weight] * (len(ids) - 1)}
    return tinker.Datum(model_input=prompt(ids[:-1]), loss_fn_inputs=inputs)


def fit(client: tinker.TrainingClient, steps: int, data: Sequence[tinker.Datum] = (datum(),)) -> list[float]:
    """Trains on the same data; gives the loss before each step."""
    losses = []
    for _ in range(steps):
        passed = client.forward_backward(list(data), "cross_entropy")
        stepped = client.optim_step(tinker.AdamParams(learning_rate=1e-2))
        losses.append(passed.result().metrics["loss:sum"])
        stepped.result()
    return losses

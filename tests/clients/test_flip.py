"""Deployments on a live server: new weights answer once before they count, and a flip disturbs nobody."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from loreloop.cli.server import RunningServer
from tests.sdk.clients import fit, trainer

pytestmark = pytest.mark.filterwarnings("ignore")
HEADER = "x-loreloop-revision"


@pytest.fixture(scope="module")
def paths(server: RunningServer) -> list[str]:
    client = trainer(server)
    found = []
    for name in ("before", "after"):
        fit(client, 2)
        found.append(client.save_weights_for_sampler(name).result().path)
    return found


@pytest.fixture
def client(server: RunningServer):
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=120) as made:
        yield made


def deploy(server: RunningServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    verb, *rest = arguments
    command = [sys.executable, "-m", "loreloop.cli", "deploy", verb, "--data", str(server.data), *rest]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def body(model: str, **fields: object) -> dict[str, object]:
    never_ends = {"logit_bias": {"2": -100}, "temperature": 0.0}
    return {"model": model, "prompt": "the quick brown", "max_tokens": 800, "seed": 3} | never_ends | fields


def test_a_stream_ends_on_the_weights_it_began_with(server: RunningServer, paths: list[str], client) -> None:
    assert deploy(server, "set", "bot", paths[0]).returncode == 0
    alone = [client.post("/v1/completions", json=body(path)).json()["choices"][0]["text"] for path in paths]
    assert alone[0] != alone[1]
    text, flips = "", []

    def flip() -> None:
        done = httpx.put(f"{server.url}/loop/v1/deployments/bot", json={"target": paths[1]}, headers=client.headers)
        flips.append((done, time.monotonic()))

    flipping = threading.Thread(target=flip)
    with client.stream("POST", "/v1/completions", json=body("bot", stream=True)) as response:
        assert response.headers[HEADER] == paths[0]
        flipping.start()
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    ended = time.monotonic()
    flipping.join()
    assert flips[0][0].is_success, flips[0][0].text
    assert flips[0][1] < ended
    assert text == alone[0]
    after = client.post("/v1/completions", json=body("bot"))
    assert (after.headers[HEADER], after.json()["choices"][0]["text"]) == (paths[1], alone[1])


def test_weights_that_do_not_answer_change_nothing(server: RunningServer, paths: list[str], client) -> None:
    assert deploy(server, "set", "careful", paths[0]).returncode == 0
    trained = trainer(server)
    path = trained.save_weights_for_sampler("broken").result().path
    shutil.rmtree(next(Path(server.data, "checkpoints").glob("*/sampler_weights/broken")))
    fit(trained, 1)  # what it was is no longer what the model is
    for number in range(16):  # until it has left the engine's memory
        trained.save_weights_for_sampler(f"n{number}").result()
    refused = deploy(server, "set", "careful", path)
    assert refused.returncode == 1
    assert f"Nothing was changed, since {path} does not answer" in refused.stderr
    assert client.post("/v1/completions", json=body("careful", max_tokens=1)).headers[HEADER] == paths[0]
    assert deploy(server, "set", "careful", paths[1]).returncode == 0
    assert deploy(server, "rollback", "careful").returncode == 0
    assert client.get("/loop/v1/deployments/careful").json()["target"] == paths[0]


def test_the_operators_key_leaves_no_trace(server: RunningServer, paths: list[str]) -> None:
    def key_ids() -> list[str]:
        """The ids alone: what earlier requests have used is written down some seconds later."""
        command = [sys.executable, "-m", "loreloop.cli", "keys", "list", "--json", "--data", str(server.data)]
        return [key["id"] for key in json.loads(subprocess.check_output(command))]

    before = key_ids()
    assert before
    assert deploy(server, "set", "quiet", paths[0]).returncode == 0
    assert key_ids() == before


def test_deployed_weights_are_kept(server: RunningServer, paths: list[str], client) -> None:
    assert deploy(server, "set", "keeper", paths[0]).returncode == 0
    run_id, _, name = paths[0].removeprefix("tinker://").split("/")
    route = f"/api/v1/training_runs/{run_id}/checkpoints/sampler_weights/{name}"
    refused = client.delete(route)
    assert refused.status_code == 409
    assert "loreloop deploy delete" in refused.json()["error"]["message"]

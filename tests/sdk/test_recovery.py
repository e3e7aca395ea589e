"""Processes of a real server are killed; the real SDK does not notice."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from loreloop.cli.server import RunningServer, running_server
from tests.processes import children_called
from tests.sdk.clients import GREEDY, IDS, datum, fit, prompt, service, trainer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def own_server(tmp_path: Path, tiny_folder: Path) -> Iterator[RunningServer]:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_folder)
    with running_server(str(tmp_path), ["--model", "tiny", "--precision", "fp32", "--threads", "1"]) as running:
        yield running


def test_a_data_folder_that_was_moved_has_all_it_had(tmp_path: Path, tiny_folder: Path) -> None:
    settings = ["--model", "tiny", "--precision", "fp32", "--threads", "1"]
    (tmp_path / "before" / "models").mkdir(parents=True)
    (tmp_path / "before" / "models" / "tiny").symlink_to(tiny_folder)
    with running_server(str(tmp_path / "before"), settings) as running:
        client = trainer(running)
        fit(client, 2)
        state, weights = (client.save_state("s").result().path, client.save_weights_for_sampler("w").result().path)
        said = service(running).create_sampling_client(weights).sample(prompt(IDS), 1, GREEDY).result().sequences[0]
        losses, key = fit(client, 1), running.key
    (tmp_path / "before").rename(tmp_path / "after")
    with running_server(str(tmp_path / "after"), settings) as running:
        after = service(running, key)
        found = after.create_sampling_client(weights).sample(prompt(IDS), 1, GREEDY).result().sequences[0]
        assert list(found.tokens) == list(said.tokens)
        assert fit(after.create_training_client_from_state_with_optimizer(state), 1) == losses
    assert not (tmp_path / "before").exists()


def process(server: RunningServer, name: str) -> psutil.Process:
    return children_called(server.pid, name)[0]


def test_a_killed_engine_changes_nothing(own_server: RunningServer) -> None:
    undisturbed = fit(trainer(own_server), 6)
    client = trainer(own_server)
    losses = fit(client, 2)
    sampler = client.save_weights_and_get_sampling_client().result()
    before = sampler.sample(prompt(IDS), 1, GREEDY).result().sequences[0].tokens
    process(own_server, "engine_process").kill()
    pending = client.forward_backward([datum()], "cross_entropy")
    assert list(sampler.sample(prompt(IDS), 1, GREEDY).result().sequences[0].tokens) == list(before)
    losses.append(pending.result().metrics["loss:sum"])
    assert losses == undisturbed[:3]
    assert client.save_state("after").result().path


def test_a_killed_http_process_changes_nothing(own_server: RunningServer) -> None:
    undisturbed = fit(trainer(own_server), 3)
    client = trainer(own_server)
    losses = fit(client, 2)
    process(own_server, "http_process").kill()
    assert losses + fit(client, 1) == undisturbed


def test_nothing_outlives_the_supervisor(own_server: RunningServer) -> None:
    supervisor = psutil.Process(own_server.pid)
    children = supervisor.children()
    supervisor.kill()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert len(gone) == 3
    assert not alive

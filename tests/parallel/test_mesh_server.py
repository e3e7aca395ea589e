"""A server whose engine is two processes, by the SDK: it gives what one process gives, and outlives a lost one."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import tinker
from tinker import types

from loreloop.cli.server import RunningServer, running_server
from loreloop.protocol.errors import ServerError
from tests.sdk.clients import service
from tests.tiny import make_tiny_model

OPTIONS = ["--model", "tiny", "--precision", "fp32", "--threads", "1"]
STEPS = 4


@contextmanager
def server(folder: Path, *options: str, family: str = "qwen3") -> Iterator[RunningServer]:
    (folder / "models").mkdir(parents=True)
    make_tiny_model(folder / "models" / "tiny", family, num_key_value_heads=4)
    with running_server(str(folder), [*OPTIONS, *options]) as running:
        yield running


def trained(client: tinker.TrainingClient, n_steps: int = STEPS) -> list[float]:
    """The losses of a few steps."""
    tokens = list(range(5, 40))
    one = types.Datum(
        model_input=types.ModelInput.from_ints(tokens),
        loss_fn_inputs={"target_tokens": [*tokens[1:], 40], "weights": [1.0] * len(tokens)},
    )
    losses = []
    for _ in range(n_steps):
        passed = client.forward_backward([one, one], "cross_entropy")
        stepped = client.optim_step(types.AdamParams(learning_rate=1e-2))
        losses.append(passed.result().metrics["loss:sum"])
        stepped.result()
    return losses


def sampled(client: tinker.SamplingClient) -> list[list[int]]:
    params = types.SamplingParams(max_tokens=12, temperature=1.0, seed=3)
    prompt = types.ModelInput.from_ints([5, 6, 7])
    return [s.tokens for s in client.sample(prompt, num_samples=3, sampling_params=params).result().sequences]


def seen(running: RunningServer, number: signal.Signals | None = None) -> tuple[list[float], list[list[int]], float]:
    """Losses, samples, and the loss that a model has which begins from the saved state. In between a rank gets a
    signal, if one is given."""
    users = service(running)
    client = users.create_lora_training_client(base_model="tiny", rank=8, seed=1).result()
    losses = trained(client, 2)
    if number:
        folder = str(running.data)
        rank = next(p for p in psutil.process_iter(["cmdline"]) if _is_rank(p, folder))
        os.kill(rank.pid, number)
    losses += trained(client, 2)
    samples = sampled(client.save_weights_and_get_sampling_client().result())
    path = client.save_state("a").result().path
    again = users.create_training_client_from_state_with_optimizer(path).result()
    return losses, samples, trained(again, 1)[0]


def _is_rank(process: psutil.Process, folder: str) -> bool:
    words = process.info["cmdline"] or []
    return "loreloop.cli.rank_process" in words and any(word.startswith(folder) for word in words)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], list[list[int]], float]:
    with server(tmp_path_factory.mktemp("one") / "data") as running:
        return seen(running)


@pytest.mark.parametrize(
    ("mesh", "number"),
    [
        *((mesh, number) for mesh in ("tp=2", "pp=2") for number in (None, signal.SIGKILL)),
        pytest.param("sp=2", None, marks=pytest.mark.slow),
        pytest.param("tp=2", signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_what_one_gives(mesh: str, number: signal.Signals | None, by_one, tmp_path: Path) -> None:
    # Silent for so long, a group is ended whose rank has been stopped.
    settings = tmp_path / "settings.toml"
    settings.write_text("[engine]\nsilence_seconds = 10\n")
    with server(tmp_path / "data", "--mesh", mesh, "--config", str(settings)) as running:
        losses, samples, later = seen(running, number)
        ends = (running.data / "loreloop.log").read_text().count("ends the engine: nothing has happened for 10 s")
    assert ends == (number == signal.SIGSTOP)
    assert losses == pytest.approx(by_one[0], rel=1e-5)
    assert samples == by_one[1]
    assert later == pytest.approx(by_one[2], rel=1e-5)


def test_a_mesh_that_does_not_fit_is_refused_at_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ServerError, match="did not start"), server(tmp_path / "data", "--mesh", "tp=3"):
        pass
    assert "The mesh tp=3 does not divide this model: 4 heads over 3 ranks" in capfd.readouterr().err

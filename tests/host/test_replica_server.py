"""A server with sampling replicas, by the SDK: the samples of one engine, drawn by several, which may die amid them."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import tinker
from click.testing import CliRunner
from tinker import types

from loreloop.cli.main import cli
from loreloop.cli.server import RunningServer, running_server
from tests.host.test_server import until
from tests.processes import children_called, words_of
from tests.sdk.clients import fit, service, trainer
from tests.tiny import make_tiny_model

# Deterministic, so that samples do not depend on which others an engine draws beside them.
OPTIONS = ["--model", "tiny", "--precision", "fp32", "--threads", "1", "--deterministic"]
N_STREAMS, N_TOKENS = 16, 100


@contextmanager
def server(folder: Path, *options: str) -> Iterator[RunningServer]:
    (folder / "models").mkdir(parents=True)
    make_tiny_model(folder / "models" / "tiny", "qwen3")
    usual = [option for option in OPTIONS if option != "--deterministic" or "--sampler" not in options]
    with running_server(str(folder), [*usual, *options]) as running:
        until(lambda: all(engine["up"] for engine in engines(running)))
        yield running


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with server(tmp_path_factory.mktemp("one") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with server(tmp_path_factory.mktemp("two") / "data", "--replicas", "2") as running:
        yield running


def engines(running: RunningServer) -> list[dict[str, int]]:
    return httpx.get(f"{running.url}/healthz").json()["engines"]  # type: ignore[no-any-return]


def metric(running: RunningServer, name: str) -> dict[int, float]:
    """Of each engine by its number; no value is 0."""
    found = dict.fromkeys(range(len(engines(running))), 0.0)
    for labels, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", httpx.get(f"{running.url}/metrics").text, re.M):
        replica = re.search('replica="(.*?)"', labels)
        found[int(replica[1]) if replica else 0] += float(value)
    return found


def process_of(running: RunningServer, replica: int) -> psutil.Process:
    engines = children_called(running.pid, "loreloop.cli.engine_process")
    (found,) = (engine for engine in engines if words_of(engine)[-2:-1] == [str(replica)])
    return found


def prompts(n: int) -> list[types.ModelInput]:
    return [types.ModelInput.from_ints([5 + i, 6, 7, *range(100, 100 + i)]) for i in range(n)]


def sampled(client: tinker.SamplingClient, n: int, max_tokens: int = 12, during=lambda: None) -> list[list[list[int]]]:
    """What is drawn for `n` prompts at once, two samples each; `during` is called while they are drawn."""
    asked = [
        client.sample(
            prompt, num_samples=2, sampling_params=types.SamplingParams(max_tokens=max_tokens, seed=i, stop=[])
        )
        for i, prompt in enumerate(prompts(n))
    ]
    during()
    return [[sequence.tokens for sequence in one.result().sequences] for one in asked]


def base(running: RunningServer) -> tinker.SamplingClient:
    return service(running).create_sampling_client(base_model="tiny").result()


def trained(running: RunningServer) -> tinker.SamplingClient:
    client = trainer(running)
    fit(client, 2)
    return client.save_weights_and_get_sampling_client().result()


def test_samples_are_those_of_one_engine_and_all_replicas_draw_them(
    alone: RunningServer, replicated: RunningServer
) -> None:
    drawn = metric(replicated, "loreloop_generated_tokens_total")
    assert sampled(base(replicated), 12) == sampled(base(alone), 12)
    now = metric(replicated, "loreloop_generated_tokens_total")
    assert now[0] == drawn[0] == 0, "the training engine is left alone"
    assert now[1] > drawn[1]
    assert now[2] > drawn[2]


def test_a_revision_is_loaded_once_where_it_is_asked_for(alone: RunningServer, replicated: RunningServer) -> None:
    before = metric(replicated, "loreloop_revision_load_seconds_count")
    client = trained(replicated)
    expected = sampled(trained(alone), 12)
    for _ in range(3):
        assert sampled(client, 12) == expected
    after = until(lambda: (now := metric(replicated, "loreloop_revision_load_seconds_count"))[2] > before[2] and now)
    assert [after[i] - before[i] for i in range(3)] == [0, 1, 1]


def test_the_same_prompt_goes_to_the_replica_that_knows_it(replicated: RunningServer) -> None:
    client = base(replicated)
    prompt = types.ModelInput.from_ints([*range(200, 260)])
    before = metric(replicated, "loreloop_sample_requests_total")
    for seed in range(4):
        client.sample(prompt, 1, types.SamplingParams(max_tokens=2, seed=seed)).result()
    after = metric(replicated, "loreloop_sample_requests_total")
    assert sorted(after[i] - before[i] for i in range(3)) == [0, 0, 4]


def streamed(running: RunningServer, seed: int, begun: set[int] | None = None) -> str:
    """The text that one stream shows. The end of a text is never drawn, so that it is long; `begun` is told
    when it has."""
    text = ""
    body = {"model": "tiny", "prompt": [5 + seed, 6, 7], "max_tokens": N_TOKENS, "seed": seed, "stream": True}
    body |= {"temperature": 1.0, "logit_bias": {"2": -100}}
    headers = {"authorization": f"Bearer {running.key}"}
    with httpx.stream("POST", f"{running.url}/v1/completions", json=body, headers=headers, timeout=120) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
                if begun is not None:
                    begun.add(seed)
    return text


def kill(running: RunningServer, number: int) -> None:
    process_of(running, number).send_signal(signal.SIGKILL)


def busy(running: RunningServer, *numbers: int) -> None:
    until(lambda: all(engines(running)[number]["samples"] for number in numbers))


def back(running: RunningServer, number: int, n_deaths: int) -> None:
    until(lambda: (one := engines(running)[number])["up"] and one["deaths"] > n_deaths)


def test_streams_outlive_a_killed_replica(alone: RunningServer, replicated: RunningServer) -> None:
    n_deaths = engines(replicated)[1]["deaths"]
    trainer_pid = process_of(replicated, 0).pid
    begun: set[int] = set()
    with ThreadPoolExecutor(N_STREAMS) as pool:
        expected = list(pool.map(lambda seed: streamed(alone, seed), range(N_STREAMS)))
        streams = [pool.submit(streamed, replicated, seed, begun) for seed in range(N_STREAMS)]
        until(lambda: len(begun) == N_STREAMS)
        assert engines(replicated)[1]["samples"], "the kill comes amid streams"
        kill(replicated, 1)
        assert [stream.result() for stream in streams] == expected
    back(replicated, 1, n_deaths)
    assert process_of(replicated, 0).pid == trainer_pid
    assert [engine["samples"] for engine in engines(replicated)] == [0, 0, 0]


def test_samples_of_the_sdk_outlive_a_killed_replica(alone: RunningServer, replicated: RunningServer) -> None:
    n_deaths = engines(replicated)[2]["deaths"]

    def during() -> None:
        busy(replicated, 1, 2)
        kill(replicated, 2)

    assert sampled(base(replicated), 16, N_TOKENS, during) == sampled(base(alone), 16, N_TOKENS)
    back(replicated, 2, n_deaths)
    assert sampled(base(replicated), 12) == sampled(base(alone), 12)


def test_a_dead_training_engine_is_no_matter_for_the_samples(alone: RunningServer, replicated: RunningServer) -> None:
    before = engines(replicated)

    def during() -> None:
        busy(replicated, 1, 2)
        kill(replicated, 0)

    assert sampled(base(replicated), 16, N_TOKENS, during) == sampled(base(alone), 16, N_TOKENS)
    back(replicated, 0, before[0]["deaths"])
    assert [one["deaths"] for one in engines(replicated)[1:]] == [one["deaths"] for one in before[1:]]
    fit(trainer(replicated), 1)


@pytest.mark.slow
def test_the_server_goes_on_without_a_replica_that_cannot_start_again(alone: RunningServer, tmp_path: Path) -> None:
    expected = sampled(base(alone), 4)
    with server(tmp_path / "data", "--replicas", "1") as running:
        client = trainer(running)
        fit(client, 1)
        weights = tmp_path / "data" / "models" / "tiny" / "model.safetensors"
        hidden = weights.rename(weights.with_suffix(".hidden"))
        trainer_pid = process_of(running, 0).pid
        kill(running, 1)
        log = running.data / "loreloop.log"
        until(lambda: log.read_text().count("tiny replica 1 (pid") >= 2)  # killed, and then ended by itself
        assert sampled(base(running), 4) == expected, "the training engine draws them"
        fit(client, 1)
        hidden.rename(weights)
        until(lambda: engines(running)[1]["up"])
        assert sampled(base(running), 4) == expected
        assert metric(running, "loreloop_sample_requests_total")[1] > 0
        assert process_of(running, 0).pid == trainer_pid


@pytest.mark.slow
def test_replicas_may_be_meshes(alone: RunningServer, tmp_path: Path) -> None:
    with server(tmp_path / "data", "--replicas", "1", "--mesh", "tp=2") as running:
        assert sampled(trained(running), 4) == sampled(trained(alone), 4)
        kill(running, 1)
        assert sampled(trained(running), 4) == sampled(trained(alone), 4)


def test_the_command_line_shows_the_engines(replicated: RunningServer) -> None:
    shown = CliRunner().invoke(cli, ["status", "--data", str(replicated.data)])
    assert shown.exit_code == 0, shown.output
    assert [line.split()[:2] for line in shown.output.splitlines()[2:]] == [
        ["tiny", "training"],
        ["tiny", "replica"],
        ["tiny", "replica"],
    ]
    told = json.loads(CliRunner().invoke(cli, ["status", "--data", str(replicated.data), "--json"]).output)
    assert [(row["engine"], row["state"]) for row in told] == [
        ("training", "up"),
        ("replica 1", "up"),
        ("replica 2", "up"),
    ]

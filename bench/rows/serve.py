"""Rows of the server: what an operation costs around the engine, and how soon new weights can be sampled."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import numpy as np
import psutil
import tinker

from bench.baselines.peft_model import PeftBaseline
from bench.rig import (
    MODEL,
    Figure,
    Side,
    alternating,
    datum,
    engine,
    folder,
    new_model,
    random_ids,
    run_pass,
    sample_op,
)
from loreloop.cli.server import RunningServer, running_server
from loreloop.engine.local import LocalEngine
from loreloop.protocol.sampling import Revision
from loreloop.protocol.training import AdamParams, OptimStep, SaveSampler


@contextmanager
def server(*options: str) -> Iterator[RunningServer]:
    with tempfile.TemporaryDirectory() as data:
        Path(data, "models").symlink_to(folder().parent)
        with running_server(data, ["--model", MODEL, *options], durability="power") as running:
            yield running


def control() -> list[Figure]:
    """An empty optim_step over HTTP on a kept-alive connection, from POST to result, where processes may die."""
    seconds = _steps("os")
    return [
        Figure("empty optim_step, p50", 1e3 * statistics.median(seconds), "ms", at_most=8),
        Figure("empty optim_step, p99", 1e3 * sorted(seconds)[int(0.99 * len(seconds))], "ms", at_most=40),
    ]


def control_synced() -> list[Figure]:
    """The same where the power may go: two syncs before the POST is answered, and two before the result is. The bound
    is for a disk that syncs in 2 ms; the disk's own time stands beside."""
    seconds, syncs = _steps("power"), []
    with tempfile.NamedTemporaryFile(dir=Path.cwd()) as file:
        for _ in range(100):
            file.write(b"x" * 4096)
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            syncs.append(time.perf_counter() - started)
    return [
        Figure("empty optim_step, synced, p50", 1e3 * statistics.median(seconds), "ms", at_most=12),
        Figure("one sync of the disk, p50", 1e3 * statistics.median(syncs), "ms"),
    ]


def _steps(durability: str) -> list[float]:
    with (
        tempfile.NamedTemporaryFile("w", suffix=".toml") as settings,
        _settled(settings, durability),
        server("--config", settings.name) as running,
        httpx.Client(base_url=f"{running.url}/api/v1", headers=_key(running), timeout=60) as client,
    ):
        session_id = client.post("/create_session", json={}).json()["session_id"]
        new = {"session_id": session_id, "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 8}}
        model_id = _operation(client, "/create_model", new)["model_id"]
        seconds = []
        for seq_id in range(1, 301):
            started = time.perf_counter()
            _operation(client, "/optim_step", {"model_id": model_id, "seq_id": seq_id, "adam_params": {}})
            seconds.append(time.perf_counter() - started)
    return seconds


@contextmanager
def _settled(file: IO[str], durability: str) -> Iterator[None]:
    file.write(f'durability = "{durability}"\n')
    file.flush()
    yield


def _key(running: RunningServer) -> dict[str, str]:
    return {"x-api-key": running.key}


def _operation(client: httpx.Client, path: str, body: dict[str, object]) -> dict[str, str]:
    request_id = client.post(path, json=body).json()["request_id"]
    return client.post("/retrieve_future", json={"request_id": request_id}).json()  # type: ignore[no-any-return]


def in_flight() -> list[Figure]:
    """2,000 samples of 16 tokens at once through the SDK: processor time of the HTTP process and of the engine."""
    rng = np.random.default_rng(0)
    with server() as running, tinker.ServiceClient(base_url=running.url, api_key=running.key) as service:
        sampler = service.create_sampling_client(base_model=MODEL).result()
        _sample(sampler, rng, 8)
        before = _processor_seconds(running)
        _sample(sampler, rng, 2000)
        spent = {name: seconds - before[name] for name, seconds in _processor_seconds(running).items()}
    return [
        Figure("2,000 samples: the engine's processor time", spent["engine"], "s"),
        Figure("2,000 samples: the HTTP process' part of that", spent["http"] / spent["engine"], "x", at_most=0.1),
    ]


def _sample(sampler: tinker.SamplingClient, rng: np.random.Generator, n: int) -> None:
    params = tinker.SamplingParams(max_tokens=16, seed=0, stop=[])
    prompts = [tinker.ModelInput.from_ints(random_ids(rng, 16).tolist()) for _ in range(n)]
    for future in [sampler.sample(prompt, 1, params) for prompt in prompts]:
        future.result()


def _processor_seconds(running: RunningServer) -> dict[str, float]:
    """By kind of process, all of a kind together."""
    seconds: dict[str, float] = {"http": 0.0, "engine": 0.0}
    for process in psutil.Process(running.pid).children(recursive=True):
        command = " ".join(process.cmdline())
        kind = next((kind for kind in seconds if f"{kind}_process" in command), None)
        if kind:
            seconds[kind] += sum(process.cpu_times()[:2])
    return seconds


def handover() -> list[Figure]:
    """From the end of optim_step in the engine to the new weights in a sampling step, against merging the adapter."""
    running, baseline = engine(), PeftBaseline(folder())
    new_model(running)
    numbers = itertools.count()
    turns = alternating(
        {
            "ours": Side(lambda: _hand_over(running, next(numbers)), lambda: _hand_over(running, next(numbers))),
            "peft": Side(baseline.merge_seconds, baseline.merge_seconds),
        },
        turns=9,
    )
    handed, merged = turns.seconds["ours"], turns.seconds["peft"]
    figures = [
        Figure("hand-over to the sampler, rank 32", 1e3 * handed, "ms", at_most=50),
        Figure("peft merging such an adapter", 1e3 * merged, "ms"),
        Figure("merging over handing over", merged / handed, "x", at_least=10),
    ]
    return [*turns.note(figures), *_first_token()]


def _hand_over(running: LocalEngine, number: int) -> float:
    """Seconds from the end of optim_step to a sampler that may begin; the first token is drawn behind them."""
    run_pass(running, [datum(random_ids(np.random.default_rng(number), 16))])
    running.optim_step(OptimStep("m", 2, "m:2", AdamParams(learning_rate=1e-5)))
    started = time.perf_counter()
    at = str(Path(tempfile.mkdtemp()) / "revision")
    running.save_sampler(SaveSampler("m", 3, "m:3", at, f"r{number}", durable=False))
    running.admit(sample_op(str(number), np.arange(100, 108), Revision(f"r{number}", at), 1, seed=0))
    seconds = time.perf_counter() - started
    while running.sampling:
        running.sample_step()
    return seconds


def _first_token() -> list[Figure]:
    """Through the SDK: from the result of optim_step to the first sampled token of the new weights."""
    seconds = []
    with server() as running, tinker.ServiceClient(base_url=running.url, api_key=running.key) as service:
        client = service.create_lora_training_client(MODEL, rank=32, train_unembed=False).result()
        prompt = tinker.ModelInput.from_ints(list(range(100, 108)))
        lesson = tinker.Datum(
            model_input=prompt, loss_fn_inputs={"target_tokens": list(range(101, 109)), "weights": [1.0] * 8}
        )
        for _ in range(7):
            client.forward_backward([lesson], "cross_entropy").result()
            client.optim_step(tinker.AdamParams(learning_rate=1e-5)).result()
            started = time.perf_counter()
            sampler = client.save_weights_and_get_sampling_client().result()
            sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=1)).result()
            seconds.append(time.perf_counter() - started)
    return [Figure("SDK: optim_step's result to the first token", 1e3 * statistics.median(seconds), "ms")]

"""The rows: each measures one thing on the default model and gives figures by name.

Engine rows run an engine in this process; server rows run a real server and talk HTTP to it.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from loreloop.cli.server import running_server
from loreloop.config import Config, EngineConfig
from loreloop.engine.contract import TokenEvent
from loreloop.engine.local import LocalEngine
from loreloop.model.catalog import Catalog
from loreloop.protocol.sampling import Revision, SampleOp, SamplingParams
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.training import CreateModel, Datum, ForwardBackward, LoraSpec, PassResult, SaveSampler, TextChunk

Figures = dict[str, float]
REPEATS = 5


def catalog() -> Catalog:
    return Catalog(Config().data_path)


def engine(**settings: object) -> LocalEngine:
    folder = catalog().ensure("smollm2-135m").folder
    return LocalEngine(EngineConfig(**settings), "smollm2-135m", folder, Path(tempfile.mkdtemp()))  # type: ignore[arg-type]


def text(tokens: np.ndarray) -> tuple[TextChunk, ...]:
    return (TextChunk(tokens.astype("<i4").tobytes()),)


def weighted(tokens: np.ndarray) -> Datum:
    weights = np.ones(len(tokens) - 1, np.float32)
    targets = tokens[1:].astype(np.int64)
    return Datum(text(tokens[:-1]), {"target_tokens": tensor_of(targets), "weights": tensor_of(weights)})


def run_pass(running: LocalEngine, data: tuple[Datum, ...], *, forward_only: bool = False) -> PassResult:
    work = running.train([ForwardBackward("m", 1, "m:1", data, "cross_entropy", {}, forward_only)])
    try:
        while True:
            next(work)
    except StopIteration as stop:
        return stop.value[0]  # type: ignore[no-any-return]


def run_samples(running: LocalEngine, ops: list[SampleOp]) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {op.request_id: [] for op in ops}
    waiting = list(ops)
    while waiting or running.sampling:
        while waiting and running.admit(waiting[0]):
            waiting.pop(0)
        for event in running.sample_step():
            if isinstance(event, TokenEvent):
                events[event.request_id].append(event)
    return events


def median_seconds(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def train() -> Figures:
    """Forward and backward, 16 × 256 tokens, rank 32, attention and MLP."""
    running, rng = engine(), np.random.default_rng(0)
    running.create_model(CreateModel("m", 0, "m:0", LoraSpec(32, 1, train_unembed=False)))
    plain = tuple(weighted(rng.integers(3, 49000, 257)) for _ in range(16))
    prompt = rng.integers(3, 49000, 256)
    group = tuple(weighted(np.concatenate([prompt, rng.integers(3, 49000, 33)])) for _ in range(16))
    return {
        "tokens/s, 16 x 256, no sharing": 16 * 256 / median_seconds(lambda: run_pass(running, plain)),
        "tokens/s, 16 x (256 shared + 32)": 16 * 288 / median_seconds(lambda: run_pass(running, group)),
    }


def decode() -> Figures:
    """Sampling with a rank-32 adapter, prompt 64, 32 new tokens."""
    running, rng = engine(), np.random.default_rng(0)
    revision = saved_revision(running)
    figures: Figures = {}
    for n in (1, 32):

        def work(n: int = n) -> None:
            ops = [sample_op(str(i), rng.integers(3, 49000, 64), revision, 32, seed=i) for i in range(n)]
            run_samples(running, ops)

        figures[f"tokens/s, {n} sequences, prefill included"] = n * 32 / median_seconds(work)
    return figures


def saved_revision(running: LocalEngine) -> Revision:
    running.create_model(CreateModel("m", 0, "m:0", LoraSpec(32, 1)))
    state = running.bank.get("m")
    state.master += 0.02 * state.master.std() * np.float32(1.0)
    state.refresh_weights()
    folder = str(Path(tempfile.mkdtemp()) / "revision")
    running.save_sampler(SaveSampler("m", 1, "m:1", folder, "r"))
    return Revision("r", folder)


def sample_op(name: str, prompt: np.ndarray, revision: Revision | None, n_new: int, *, seed: int) -> SampleOp:
    return SampleOp(name, "bench", revision, text(prompt), 1, SamplingParams(max_tokens=n_new, seed=seed))


def mismatch() -> Figures:
    """Log-probabilities of over 10,000 sampled tokens, sampler against trainer, same adapter, bf16."""
    running, rng = engine(), np.random.default_rng(0)
    revision = saved_revision(running)
    ops = [sample_op(str(i), rng.integers(3, 49000, 16), revision, 160, seed=i) for i in range(64)]
    events = run_samples(running, ops)
    differences = []
    for op in ops:
        prompt = np.frombuffer(op.prompt[0].tokens, "<i4")
        tokens = np.concatenate([prompt, [event.token for event in events[op.request_id]]])
        scored = run_pass(running, (weighted(tokens),), forward_only=True).outputs[0]["logprobs"].numpy()
        sampled = np.array([event.logprob for event in events[op.request_id]])
        differences.append(sampled - scored[len(prompt) - 1 :])
    delta = np.concatenate(differences)
    return {
        "tokens": float(len(delta)),
        "mean |difference|": float(np.abs(delta).mean()),
        "KL to the trainer (mean of e^-d - 1 + d)": float((np.exp(-delta) - 1 + delta).mean()),
    }


def control() -> Figures:
    """An empty optim_step over HTTP on a kept-alive connection, from POST to result."""
    with tempfile.TemporaryDirectory() as data:
        catalog().ensure("smollm2-135m")
        Path(data, "models").symlink_to(catalog().folder)
        with (
            running_server(data, ["--model", "smollm2-135m"]) as server,
            httpx.Client(base_url=f"{server.url}/api/v1", headers={"x-api-key": server.key}, timeout=60) as client,
        ):
            session_id = client.post("/create_session", json={}).json()["session_id"]
            lora = {
                "session_id": session_id,
                "model_seq_id": 0,
                "base_model": "smollm2-135m",
                "lora_config": {"rank": 8},
            }
            model_id = step(client, "/create_model", lora)["model_id"]
            seconds = []
            for seq_id in range(1, 301):
                started = time.perf_counter()
                step(client, "/optim_step", {"model_id": model_id, "seq_id": seq_id, "adam_params": {}})
                seconds.append(time.perf_counter() - started)
    return {"p50 ms": 1e3 * statistics.median(seconds), "p99 ms": 1e3 * sorted(seconds)[int(0.99 * len(seconds))]}


def step(client: httpx.Client, path: str, body: dict[str, object]) -> dict[str, str]:
    """One operation from POST to result."""
    request_id = client.post(path, json=body).json()["request_id"]
    return client.post("/retrieve_future", json={"request_id": request_id}).json()  # type: ignore[no-any-return]


ROWS: dict[str, Callable[[], Figures]] = {"train": train, "decode": decode, "mismatch": mismatch, "control": control}

"""Rows of numbers that must agree, and of what many tenants cost in training."""

from __future__ import annotations

import numpy as np

from bench.rig import (
    Figure,
    alternating,
    datum,
    engine,
    new_model,
    random_ids,
    run_pass,
    run_passes,
    run_samples,
    sample_op,
    saved_revision,
    with_threads,
)
from loreloop.engine.local import LocalEngine
from loreloop.protocol.training import ForwardBackward

THREADS = 2


def mismatch() -> list[Figure]:
    """Log-probabilities of over 10,000 sampled tokens, sampler against trainer, same adapter, bf16 and int4."""
    return [*_mismatch(engine(), "bf16"), *_mismatch(engine(quantize="int4"), "int4")]


def _mismatch(running: LocalEngine, name: str) -> list[Figure]:
    rng = np.random.default_rng(0)
    new_model(running)
    state = running.bank.get("m")
    state.master += 0.02 * state.master.std()
    state.refresh_weights()
    revision = saved_revision(running)
    ops = [sample_op(str(i), random_ids(rng, 16), revision, 160, seed=i) for i in range(64)]
    events = run_samples(running, ops)
    differences = []
    for op in ops:
        prompt = np.frombuffer(op.prompt[0].tokens, "<i4")  # type: ignore[union-attr]
        tokens = np.concatenate([prompt, [event.token for event in events[op.request_id]]])
        scored = run_pass(running, [datum(tokens)], forward_only=True).outputs[0]["logprobs"].numpy()
        sampled = np.array([event.logprob for event in events[op.request_id]])
        differences.append(sampled - scored[len(prompt) - 1 :])
    delta = np.concatenate(differences)
    return [
        Figure(f"{name}: tokens", len(delta), "tokens", at_least=10_000),
        Figure(f"{name}: mean |difference|", float(np.abs(delta).mean()), "nats", at_most=0.01),
        Figure(
            f"{name}: KL to the trainer, mean of exp(-d) - 1 + d",
            float((np.exp(-delta) - 1 + delta).mean()),
            "nats",
            at_most=2e-4,
        ),
    ]


def tenants_train() -> list[Figure]:
    """Eight adapters with 2 x 256 tokens each in one batch, against one adapter with 16 x 256."""
    running, rng = engine(resident_models=8), np.random.default_rng(0)
    for i in range(8):
        new_model(running, model=str(i))
    data = [datum(random_ids(rng, 257)) for _ in range(16)]
    one = [ForwardBackward("0", 1, "0:1", tuple(data), "cross_entropy", {}, False)]
    many = [
        ForwardBackward(str(i), 1, f"{i}:1", tuple(data[2 * i : 2 * i + 2]), "cross_entropy", {}, False)
        for i in range(8)
    ]
    seconds = alternating(
        {
            "one": with_threads(THREADS, lambda: run_passes(running, one)),
            "many": with_threads(THREADS, lambda: run_passes(running, many)),
        }
    )
    return [
        Figure("8 adapters over one", seconds["one"] / seconds["many"], "x", at_least=0.85),
        Figure("tokens/s with one adapter", 4096 / seconds["one"], "tokens/s"),
    ]

"""Rows of sampling, against `transformers` + `peft`: one sequence, 32, groups; and many adapters against one."""

from __future__ import annotations

import statistics

import numpy as np

from bench.baselines.peft_model import PeftBaseline
from bench.products import decode_products
from bench.rig import (
    Figure,
    alternating,
    decode_steps,
    engine,
    folder,
    random_ids,
    run_samples,
    sample_op,
    saved_revision,
    with_threads,
)

THREADS = 2


def decode() -> list[Figure]:
    """One sequence, prompt 64, 128 new tokens; rank-32 adapter on both sides."""
    return _decode(n=1, n_new=128, at_least=2.0)


def decode_32() -> list[Figure]:
    """32 different prompts of 64 tokens, 64 new tokens each."""
    return _decode(n=32, n_new=64, at_least=3.5)


def _decode(n: int, n_new: int, at_least: float) -> list[Figure]:
    running, rng = engine(), np.random.default_rng(0)
    revision, baseline = saved_revision(running), PeftBaseline(folder())
    prompts = [random_ids(rng, 64) for _ in range(n)]
    ops = [sample_op(str(i), prompt, revision, n_new, seed=i) for i, prompt in enumerate(prompts)]
    steps: list[float] = []
    seconds = alternating(
        {
            "ours": with_threads(THREADS, lambda: steps.extend(decode_steps(running, ops))),
            "products": with_threads(THREADS, lambda: [decode_products(running, n) for _ in range(n_new)]),
            "peft": with_threads(THREADS, lambda: baseline.generate(prompts, n_new)),
        }
    )
    name = f"{n} x (64 + {n_new})"
    figures = [
        Figure(f"{name}: tokens/s", n * n_new / seconds["ours"], "tokens/s"),
        Figure(f"{name}: peft's tokens/s", n * n_new / seconds["peft"], "tokens/s"),
        Figure(f"{name}: over peft", seconds["peft"] / seconds["ours"], "x", at_least=at_least),
    ]
    step, products = statistics.median(steps), seconds["products"] / n_new
    return [
        *figures,
        Figure(f"{name}: decoding step", 1e3 * step, "ms"),
        Figure(f"{name}: step over the base products alone", step / products, "x", at_most=1.6 if n > 1 else None),
    ]


def sample_groups() -> list[Figure]:
    """4 prompts of 512 tokens, 16 samples of 64 tokens of each."""
    running, rng = engine(), np.random.default_rng(0)
    revision, baseline = saved_revision(running), PeftBaseline(folder())
    prompts = [random_ids(rng, 512) for _ in range(4)]
    ops = [sample_op(str(i), prompt, revision, 64, seed=i, n=16) for i, prompt in enumerate(prompts)]
    repeated = [prompt for prompt in prompts for _ in range(16)]
    seconds = alternating(
        {
            "ours": with_threads(THREADS, lambda: run_samples(running, ops)),
            "peft": with_threads(THREADS, lambda: baseline.generate(repeated, 64)),
        }
    )
    name = "4 x 16 x (512 + 64)"
    return [
        Figure(f"{name}: tokens/s", 4096 / seconds["ours"], "tokens/s"),
        Figure(f"{name}: peft's tokens/s", 4096 / seconds["peft"], "tokens/s"),
        Figure(f"{name}: over peft", seconds["peft"] / seconds["ours"], "x", at_least=5.0),
    ]


def tenants_sample() -> list[Figure]:
    """32 sequences over eight adapters against one adapter, at ranks 8 and 32."""
    return [*_tenants(8, 0.8), *_tenants(32, 0.65)]


def _tenants(rank: int, at_least: float) -> list[Figure]:
    running, rng = engine(), np.random.default_rng(0)
    revisions = [saved_revision(running, f"r{i}", rank) for i in range(8)]
    prompts = [random_ids(rng, 64) for _ in range(32)]
    one = [sample_op(str(i), prompt, revisions[0], 64, seed=i) for i, prompt in enumerate(prompts)]
    many = [sample_op(str(i), prompt, revisions[i % 8], 64, seed=i) for i, prompt in enumerate(prompts)]
    seconds = alternating(
        {
            "one": with_threads(THREADS, lambda: run_samples(running, one)),
            "many": with_threads(THREADS, lambda: run_samples(running, many)),
        }
    )
    return [
        Figure(f"8 adapters of rank {rank} over one", seconds["one"] / seconds["many"], "x", at_least=at_least),
        Figure(f"tokens/s with one adapter of rank {rank}", 2048 / seconds["one"], "tokens/s"),
    ]

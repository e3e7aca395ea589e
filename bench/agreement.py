"""Log-probabilities of sampled tokens, sampler against trainer, same adapter: the figures of any engine."""

from __future__ import annotations

import numpy as np

from bench.rig import Figure, new_model, random_ids, sample_op, saved_revision
from loreloop.engine.agreement import sampled_minus_trained
from loreloop.engine.local import LocalEngine


def agreement(running: LocalEngine, name: str, *, n_rows: int = 64, n_new: int = 160) -> list[Figure]:
    """What is asked of them is asked of over 10,000 tokens; fewer are for trying the code."""
    rng = np.random.default_rng(0)
    new_model(running)
    state = running.bank.get("m")
    state.master += 0.02 * state.master.std()
    state.refresh_weights()
    revision = saved_revision(running)
    ops = [sample_op(str(i), random_ids(rng, 16), revision, n_new, seed=i) for i in range(n_rows)]
    delta = sampled_minus_trained(running, "m", ops)
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

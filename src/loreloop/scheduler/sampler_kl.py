"""How far the policy that a pass computes is from whoever drew the pass's tokens, by what both say of them.

An estimate of the divergence of the trainer from the sampler, without gradients. Knows no losses, only their inputs.
"""

from __future__ import annotations

import numpy as np

from loreloop.protocol.training import ForwardBackward, OpResult, PassResult, TrainOp

NEEDED = ("logprobs", "advantages")


def sampler_kl(op: TrainOp, result: OpResult) -> float | None:
    """The mean of r − 1 − log r over tokens with an advantage, in nats, where r is what the trainer gives a token over
    what its sampler gave it. None where an operation compares with no sampler."""
    if not isinstance(op, ForwardBackward) or not isinstance(result, PassResult):
        return None
    found = []
    for datum, outputs in zip(op.data, result.outputs, strict=False):
        trained = outputs["logprobs"].numpy().astype(np.float64)
        # A loss without a sampler lets such inputs pass unread, whatever shape and values they have.
        if not all(name in datum.inputs and datum.inputs[name].shape == trained.shape for name in NEEDED):
            continue
        # Only where a loss looks: elsewhere stand zeros in place of log-probabilities.
        learned = datum.inputs["advantages"].numpy() != 0
        sampled = datum.inputs["logprobs"].numpy().astype(np.float64)
        if np.isfinite(sampled[learned]).all():
            found.append((trained - sampled)[learned])
    differences = np.concatenate(found) if found else np.zeros(0)
    if not differences.size:
        return None
    with np.errstate(over="ignore"):  # an enormous ratio is infinitely far away, and is told so
        return float((np.exp(differences) - 1 - differences).mean())

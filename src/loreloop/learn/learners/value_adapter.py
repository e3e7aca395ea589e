"""A value of every token, learned by a second adapter of the same base model through the protocol alone.

The protocol has no value head. But `cross_entropy` takes K targets at every position, and `forward` gives their
log-probabilities, which is all that a categorical value needs: K tokens of the vocabulary stand for K scores, and

    V_t = Σ_k b_k p_k / Σ_k p_k        p_k = π_value(k-th token | prefix before t),  b = K scores from `low` to `high`

The targets share a return out between its two nearest scores, so that their mean is the return ("two-hot"). One pass
reads all positions of a row. A number read from a distribution learns with the same loss and at the same rates as text
does, and its error is bounded by the scores, where a linear head on hidden states would have to be added to the
protocol. Sources: Bellemare et al. 2017 (arXiv 1707.06887); Farebrother et al. 2024 (2403.03950).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tinker
from numpy.typing import NDArray

from loreloop.learn.rollouts.traces import Trace

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """Which tokens stand for which scores: the first for `low`, the last for `high`, the others evenly between."""

    tokens: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if len(set(self.tokens)) != len(self.tokens) or len(self.tokens) < 2:
            raise ValueError("a scale has two tokens or more, all different")
        if not self.low < self.high:
            raise ValueError("the lowest score of a scale is below the highest")

    @property
    def scores(self) -> Array:
        """b, shape (K,)."""
        return np.linspace(self.low, self.high, len(self.tokens))

    def shares(self, values: Array) -> Array:
        """How each value is shared out among the scores, shape (N, K); beyond the ends all is the end's."""
        n_scores = len(self.tokens)
        place = np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0) * (n_scores - 1)
        # The highest score has no neighbour above, so it is reached as the full share of the last pair's upper end.
        below = np.minimum(place.astype(int), n_scores - 2)
        shares = np.zeros((len(values), n_scores))
        rows = np.arange(len(values))
        shares[rows, below] = 1.0 - (place - below)
        shares[rows, below + 1] = place - below
        return shares

    def read(self, logprobs: Array) -> Array:
        """V of every position from the log-probabilities of the tokens, (N, K) to (N,)."""
        # Only the proportions count: at first nearly all probability lies on words.
        relative = np.exp(logprobs - logprobs.max(axis=1, keepdims=True))
        return (relative * self.scores).sum(axis=1) / relative.sum(axis=1)


@dataclass(frozen=True)
class ValueStep:
    """One step of the adapter that was handed in. A pass that learns tells the log-probabilities of before its step, so
    that the values need no pass of their own: PPO's targets are plain returns, which do not depend on them."""

    scale: Scale
    passed: tinker.APIFuture[tinker.ForwardBackwardOutput]
    stepped: tinker.APIFuture[tinker.OptimStepResponse]

    async def values(self) -> list[Array]:
        """V of every target of every trace before the step, each of shape (N,)."""
        output = await self.passed
        return [self.scale.read(np.asarray(out["logprobs"].to_numpy(), np.float64)) for out in output.loss_fn_outputs]

    async def loss(self) -> float:
        """The cross-entropy a token before the step, which has been made when this is given."""
        output, _ = await self.passed, await self.stepped
        return float(output.metrics["loss:sum"])


class ValueAdapter:
    """The second adapter. `client` must be one of its own, not the policy's."""

    def __init__(self, client: tinker.TrainingClient, scale: Scale, *, learning_rate: float = 1e-4) -> None:
        self.client, self.scale, self.learning_rate = client, scale, learning_rate

    def learn(self, traces: Sequence[Trace], targets: Sequence[Array]) -> ValueStep:
        """Hands in one step towards the targets, each of shape (N,)."""
        # Divided here, as the loss is a sum: what is told of it is then nats a token, however long answers are.
        n_tokens = max(1, sum(trace.n_learned for trace in traces))
        data = [
            self._datum(trace, self.scale.shares(target) * trace.learned[:, None] / n_tokens)
            for trace, target in zip(traces, targets, strict=True)
        ]
        passed = self.client.forward_backward(data, "cross_entropy")
        return ValueStep(
            self.scale, passed, self.client.optim_step(tinker.AdamParams(learning_rate=self.learning_rate))
        )

    def _datum(self, trace: Trace, weights: Array) -> tinker.Datum:
        tokens = np.tile(np.array(self.scale.tokens, np.int64), (len(trace.targets), 1))
        return tinker.Datum(
            model_input=trace.model_input,
            loss_fn_inputs={
                "target_tokens": tinker.TensorData.from_numpy(tokens),
                "weights": tinker.TensorData.from_numpy(weights.astype(np.float32)),
            },
        )

"""SFT: the model learns to say what the examples say, by cross entropy on the assistant's tokens.

Loss: Σ −w · log p(token | what stands before it), over the tokens of assistant turns and the one that ends each; w is
the weight of the turn. It is summed over a batch, as the Tinker API has it, and Adam does not mind the scale.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import numpy as np
import tinker

from loreloop.learn.clients import Clients, adam_of
from loreloop.learn.examples import Demonstration
from loreloop.learn.plan import Moment, Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.runner import TOKENS, Metrics

LOSS: tinker.types.LossFnType = "cross_entropy"


class Sft:
    """A learner of demonstrations."""

    ahead = 0

    def __init__(self, plan: Plan, client: tinker.TrainingClient, renderer: Renderer) -> None:
        self.plan, self.client, self.renderer = plan, client, renderer

    @classmethod
    async def of(cls, plan: Plan, clients: Clients, renderer: Renderer) -> Sft:
        """With the run's client."""
        return cls(plan, await clients.training(), renderer)

    def prepare(self, batch: Sequence[Demonstration], at: Moment) -> None:
        """Nothing of an example takes long."""

    async def step(self, batch: Sequence[Demonstration], at: Moment) -> Awaitable[Metrics]:
        """One pass and one optimizer step, both handed in before either is waited for."""
        data = self._data(batch)
        passed = self.client.forward_backward(data, LOSS)
        stepped = self.client.optim_step(adam_of(self.plan, at.learning_rate))
        return self._metrics(data, passed, stepped)

    async def _metrics(
        self,
        data: Sequence[tinker.Datum],
        passed: tinker.APIFuture[tinker.ForwardBackwardOutput],
        stepped: tinker.APIFuture[tinker.OptimStepResponse],
    ) -> Metrics:
        # Both, though the step says nothing: an error of the optimizer must end the run at the step where it happened.
        output, _ = await passed, await stepped
        found = {f"train_{name}": value for name, value in scores(data, output.loss_fn_outputs).items()}
        return found | {TOKENS: float(sum(datum.model_input.length for datum in data))}

    async def evaluate(self, examples: Sequence[Demonstration]) -> Metrics:
        """`valid_loss` and `valid_mean_token_accuracy` of all examples together."""
        data = self._data(examples)
        output = await self.client.forward(data, LOSS)
        return {f"valid_{name}": value for name, value in scores(data, output.loss_fn_outputs).items()}

    def _data(self, examples: Sequence[Demonstration]) -> list[tinker.Datum]:
        return [datum for example in examples for datum in self.renderer.demonstrations(example)]

    def state(self) -> dict[str, Any]:
        """Nothing beside the client's state."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is to be taken back."""


def scores(data: Sequence[tinker.Datum], outputs: Sequence[Mapping[str, tinker.TensorData]]) -> Metrics:
    """`loss` is the mean over learned tokens, in nats. `mean_token_accuracy` is the expected share of them that the
    model gets right where it draws at temperature 1, which is the mean of their probabilities: the API gives no other
    tokens' probabilities to compare with. Both are weighted, and of the weights before the step."""
    weights = np.concatenate([datum.loss_fn_inputs["weights"].to_numpy() for datum in data])
    logprobs = np.concatenate([one["logprobs"].to_numpy() for one in outputs])
    total = float(weights.sum()) or 1.0  # where nothing is learned, the sums are 0 as well
    return {
        "loss": float(-(weights * logprobs).sum()) / total,
        "mean_token_accuracy": float((weights * np.exp(logprobs)).sum()) / total,
    }

"""Losses over the log-probabilities of whole answers, through the one loss that every Tinker server has.

An answer is one datum or several, and its log-probability the weighted sum over their learned tokens. With
wₜ = −∂L/∂lpₜ the pass Σ −wₜ · lpₜ of `cross_entropy` has, at the weights as they are, the gradient of L itself: the
chain rule needs no more of L than its derivatives. It is what the SDK's `forward_backward_custom` does, without torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tinker

Floats = npt.NDArray[np.float64]
Answers = Sequence[Sequence[tinker.Datum]]  # the data of each answer

LOSS: tinker.types.LossFnType = "cross_entropy"
WEIGHTS = "weights"


async def logprobs_of(client: tinker.TrainingClient, answers: Answers) -> Floats:
    """The log-probability of each answer, in nats, by one forward pass."""
    output = await client.forward([datum for answer in answers for datum in answer], LOSS)
    each = iter(output.loss_fn_outputs)
    return np.array([sum(weighted_sum(datum, next(each)) for datum in answer) for answer in answers], np.float64)


def weighted_sum(datum: tinker.Datum, output: dict[str, tinker.TensorData]) -> float:
    """Σ w · lp over a datum's targets."""
    weights = datum.loss_fn_inputs[WEIGHTS].to_numpy().astype(np.float64)
    return float(weights @ output["logprobs"].to_numpy().astype(np.float64))


def surrogate(answers: Answers, slopes: Floats) -> list[tinker.Datum]:
    """Data whose `cross_entropy` has the gradient of a loss with these slopes; flat ones are left out."""
    pairs = zip(answers, slopes, strict=True)
    steep = [_weighted(datum, -float(slope)) for answer, slope in pairs if slope for datum in answer]
    # Where nothing is left to learn, a pass must have some datum all the same.
    return steep or [_weighted(answers[0][0], 0.0)]


def _weighted(datum: tinker.Datum, factor: float) -> tinker.Datum:
    weights = tinker.TensorData.from_numpy((factor * datum.loss_fn_inputs[WEIGHTS].to_numpy()).astype(np.float32))
    return tinker.Datum(model_input=datum.model_input, loss_fn_inputs={**datum.loss_fn_inputs, WEIGHTS: weights})


def n_tokens(answers: Answers) -> int:
    """How many positions the answers' data have, with those of their prompts."""
    return sum(datum.model_input.length for answer in answers for datum in answer)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(−x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))

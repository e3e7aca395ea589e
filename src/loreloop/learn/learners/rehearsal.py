"""SFT beside rehearsal: some examples are imitated, and on other prompts the model stays as it was.

    loss = Σ −log p(y_t) over the imitated answers' tokens  +  Σ_t Σ_k −q_t(k) · log p_t(k) over the rehearsed ones

q_t are the probabilities that the weights before the run gave to their K likeliest tokens behind the first t − 1 tokens
of their own answer, in sum 1. The second part is KL(q‖p) but for a constant: distillation of what was known (Li and
Hoiem 2016, Learning without Forgetting, arXiv 1606.09282), on prompts in the place of the data that nobody has any
more (Robins 1995). Against one's own probabilities the slope is 0 where the run begins, so far as the K tokens have
all of the probability: what they lack of it is as much as is taken from all other tokens by and by. Its answer as
one more example to imitate has a slope from the first step on, towards saying that one answer always. Knows no files
and no stage of a loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tinker

from loreloop.learn.clients import adam_of
from loreloop.learn.examples import Demonstration
from loreloop.learn.learners.sft import LOSS, Sft, scores
from loreloop.learn.plan import Moment, Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.runner import TOKENS, Metrics
from loreloop.text.conversation import Conversation

Likely = Sequence[Sequence[tuple[int, float]]]  # at each place of an answer, tokens with their probabilities


@dataclass(frozen=True)
class Rehearsed:
    """A conversation, the `tokens` that were said to it, and at the place of each of them what was `likely`."""

    prompt: Conversation
    tokens: tuple[int, ...]
    likely: Likely


class SftWithRehearsal(Sft):
    """A learner of demonstrations, with `beside` of the rehearsed prompts in each of its steps, in their turn. Not as
    lines among others: however few the demonstrations are, each step is for them, and however many, each holds what was
    known."""

    def __init__(
        self,
        plan: Plan,
        client: tinker.TrainingClient,
        renderer: Renderer,
        rehearsed: Sequence[Rehearsed],
        beside: int,
    ) -> None:
        super().__init__(plan, client, renderer)
        self.rehearsed, self.beside = [datum_of(renderer, one) for one in rehearsed], min(beside, len(rehearsed))
        self.unlisted = [unlisted(one.likely) for one in rehearsed]

    async def step(self, batch: Sequence[Demonstration], at: Moment) -> Awaitable[Metrics]:
        """One pass over both kinds and one optimizer step, both handed in before either is waited for."""
        shown, first = self._data(batch), at.step * self.beside
        held = [(first + place) % len(self.rehearsed) for place in range(self.beside)]
        passed = self.client.forward_backward([*shown, *(self.rehearsed[one] for one in held)], LOSS)
        stepped = self.client.optim_step(adam_of(self.plan, at.learning_rate))
        return self._both(shown, held, passed, stepped)

    async def _both(
        self,
        shown: Sequence[tinker.Datum],
        held: Sequence[int],
        passed: tinker.APIFuture[tinker.ForwardBackwardOutput],
        stepped: tinker.APIFuture[tinker.OptimStepResponse],
    ) -> Metrics:
        # Both, though the step says nothing: an error of the optimizer must end the run at the step where it happened.
        output, _ = await passed, await stepped
        found = scores(shown, output.loss_fn_outputs[: len(shown)])
        if held:
            found["drift"] = self._drift(held, output.loss_fn_outputs[len(shown) :])
        n_tokens = sum(datum.model_input.length for datum in (*shown, *(self.rehearsed[one] for one in held)))
        return {f"train_{name}": value for name, value in found.items()} | {TOKENS: float(n_tokens)}

    async def evaluate(self, examples: Sequence[Demonstration]) -> Metrics:
        """As that of SFT, with the drift over all rehearsed prompts."""
        found = await super().evaluate(examples)
        output = await self.client.forward(self.rehearsed, LOSS)
        return found | {"valid_drift": self._drift(range(len(self.rehearsed)), output.loss_fn_outputs)}

    def _drift(self, held: Sequence[int], outputs: Sequence[Mapping[str, tinker.TensorData]]) -> float:
        data = [self.rehearsed[one] for one in held]
        return drift(data, outputs, sum(self.unlisted[one] for one in held))


def datum_of(renderer: Renderer, example: Rehearsed) -> tinker.Datum:
    """Targets (N, K) with weights in the same shape: 0 over the prompt, and probabilities over the answer."""
    prompt = renderer.prompt(example.prompt)
    said = tinker.types.EncodedTextChunk(tokens=list(example.tokens[:-1]))
    # The position of a prompt's last token is that of the answer's first target.
    first, n_targets = prompt.length - 1, max(map(len, example.likely))
    targets = np.zeros((first + len(example.tokens), n_targets), np.int64)
    weights = np.zeros(targets.shape, np.float32)
    for place, row in enumerate(example.likely):
        total = sum(share for _, share in row)
        targets[first + place, : len(row)] = [token for token, _ in row]
        weights[first + place, : len(row)] = [share / total for _, share in row]
    return tinker.Datum(
        model_input=tinker.ModelInput(chunks=[*prompt.chunks, *([said] if said.tokens else [])]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(targets),
            "weights": tinker.TensorData.from_numpy(weights),
        },
    )


def unlisted(likely: Likely) -> float:
    """Σ_t −log Z_t in nats, where Z_t is the probability that the listed tokens have together: by so much more than the
    truth a model that is as it was seems to have moved from what it was, as only listed tokens are compared."""
    return float(sum(-np.log(sum(share for _, share in row)) for row in likely))


def drift(
    data: Sequence[tinker.Datum], outputs: Sequence[Mapping[str, tinker.TensorData]], unlisted_nats: float = 0.0
) -> float:
    """Σ_k q(k) · log(q(k) / p(k)), the mean over all rehearsed places, in nats: how far a model has moved from what it
    was. Probabilities q stand in the data as weights, log p in what a pass has given. `unlisted_nats` are taken off the
    sum over places."""
    nats, n_places = -unlisted_nats, 0
    for datum, output in zip(data, outputs, strict=True):
        q = datum.loss_fn_inputs["weights"].to_numpy().astype(np.float64)
        log_p = output["logprobs"].to_numpy().astype(np.float64).reshape(q.shape)
        some = q > 0
        nats += float((q[some] * (np.log(q[some]) - log_p[some])).sum())
        n_places += int(some.any(axis=1).sum())
    return nats / max(1, n_places)

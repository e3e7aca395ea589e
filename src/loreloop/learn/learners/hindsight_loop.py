"""The step of hindsight self-distillation, over answers that were given before and what came after each.

Every step asks the weights that learn twice, with and without the outcome, and takes one policy-gradient step on the
difference (`hindsight.py`). The answers need not be these weights' own: the ratio begins at what they say of them now.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tinker

from loreloop.learn.clients import Clients, adam_of
from loreloop.learn.examples import Demonstration, Told
from loreloop.learn.learners.evidence import trainer_logprobs
from loreloop.learn.learners.hindsight import Hindsight, told
from loreloop.learn.learners.policy import Scored
from loreloop.learn.plan import Moment, Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.rollouts.traces import Trace, traces_of
from loreloop.learn.rollouts.values import Rollout, Sampled
from loreloop.learn.runner import TOKENS, Metrics
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation


@dataclass(frozen=True)
class Pair:
    """One answer behind its prompt, and behind the prompt that tells what came after."""

    plain: Trace
    shown: Trace


class HindsightLearner:
    """A learner of `Told` examples, for the runner."""

    ahead = 0

    def __init__(self, plan: Plan, client: tinker.TrainingClient, renderer: Renderer, learner: Hindsight) -> None:
        self.plan, self.client, self.renderer, self.learner = plan, client, renderer, learner

    @classmethod
    async def of(cls, plan: Plan, clients: Clients, renderer: Renderer, learner: Hindsight) -> HindsightLearner:
        """With the run's client."""
        return cls(plan, await clients.training(), renderer, learner)

    def prepare(self, batch: Sequence[Told], at: Moment) -> None:
        """Nothing of an example takes long."""

    async def step(self, batch: Sequence[Told], at: Moment) -> Awaitable[Metrics]:
        """Two rows of log-probabilities an answer, then one pass and one optimizer step."""
        scored = await self._scored(batch)
        data = self.learner.datums([scored])
        found = {f"train_{name}": value for name, value in _measured(scored).items()}
        # With nothing to learn no step is taken either, as Adam would move the weights by its momentum alone.
        if not data:
            return _nothing(found)
        passed = self.client.forward_backward(data, self.learner.loss)
        stepped = self.client.optim_step(adam_of(self.plan, at.learning_rate))
        return _done(found | {TOKENS: float(sum(datum.model_input.length for datum in data))}, passed, stepped)

    async def evaluate(self, examples: Sequence[Told]) -> Metrics:
        """How far hindsight changes what is thought of held-out answers; names begin with `valid_`."""
        return {f"valid_{name}": value for name, value in _measured(await self._scored(examples)).items()}

    async def _scored(self, batch: Sequence[Told]) -> list[Scored]:
        pairs = [pair_of(self.renderer, one) for one in batch]
        traces = [trace for pair in pairs for trace in (pair.plain, pair.shown)]
        rows = await trainer_logprobs(self.client, traces)
        scored = []
        for pair, plain, shown in zip(pairs, rows[::2], rows[1::2], strict=True):
            hindsight = np.zeros(len(plain))
            # The answer's tokens are the same in both rows, and stand elsewhere.
            hindsight[pair.plain.learned] = shown[pair.shown.learned]
            scored.append(Scored(pair.plain, trainer=plain, hindsight=hindsight))
        return scored

    def state(self) -> dict[str, Any]:
        """Nothing beside the client's state."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is to be taken back."""


def pair_of(renderer: Renderer, one: Told) -> Pair:
    """Both rows of an answer. BadRequest where its turns are several, as what came after is then not after each."""
    if len(one.answer.turns) != 1:
        raise BadRequest("An answer to learn from in hindsight is one turn of the assistant.")
    # Taken from the plain row and reused in the other: rendered anew behind another prompt, they could be other tokens.
    tokens = _answer_tokens(renderer, one.prompt, one.answer)
    plain, shown = (
        _trace(renderer, conversation, tokens) for conversation in (one.prompt, told(one.prompt, one.outcome))
    )
    return Pair(plain, shown)


def _answer_tokens(renderer: Renderer, prompt: Conversation, answer: Conversation) -> tuple[int, ...]:
    turns = (*prompt.turns, *answer.turns)
    weights = (0.0,) * len(prompt.turns) + (1.0,)
    whole = Demonstration(Conversation(turns, prompt.tools, prompt.settings), weights)
    (row,) = renderer.weighted(whole)
    return tuple(token for token, weight in zip(row.tokens, row.weights, strict=True) if weight)


def _trace(renderer: Renderer, conversation: Conversation, tokens: tuple[int, ...]) -> Trace:
    unknown = (0.0,) * len(tokens)  # the trainer is asked, so that nobody reads these
    said = Sampled(tokens, unknown, (0,) * len(tokens))
    (trace,) = traces_of(Rollout(prompt=renderer.prompt(conversation), turns=(said,), reward=0.0))
    return trace


def _measured(scored: Sequence[Scored]) -> Metrics:
    """Nats a token: `answer_logprob` of the answers as they are, `hindsight` by how much the outcome changes it, and
    `hindsight_size` the mean size of these changes, whichever way they go."""
    plain = np.concatenate([one.known("trainer")[one.trace.learned] for one in scored])
    shown = np.concatenate([one.known("hindsight")[one.trace.learned] for one in scored])
    changes = shown - plain
    return {
        "answer_logprob": float(plain.mean()),
        "hindsight": float(changes.mean()),
        "hindsight_size": float(np.abs(changes).mean()),
    }


async def _nothing(found: Metrics) -> Metrics:
    return found | {TOKENS: 0.0}


async def _done(
    found: Metrics,
    passed: tinker.APIFuture[tinker.ForwardBackwardOutput],
    stepped: tinker.APIFuture[tinker.OptimStepResponse],
) -> Metrics:
    output, _ = await passed, await stepped
    return found | {"train_loss": float(output.metrics["loss:sum"])}

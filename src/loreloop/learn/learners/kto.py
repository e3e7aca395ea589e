"""KTO: answers that were wanted become likelier, others less likely, without pairs: from single marks.

With r = log π(y|x) − log π_ref(y|x), the loss of an answer is λ · (1 − σ(β · (r − z))) if it was wanted and
λ · (1 − σ(β · (z − r))) if not; the batch's is the mean. z estimates the divergence from the reference: the mean of r
over answers behind prompts of other examples, at least 0, and no gradient flows through it.
Ethayarajh et al. 2024, arXiv 2402.01306, section 4. A slope by r is ∓ λ · β · s · (1 − s) with s the sigmoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tinker

from loreloop.learn.clients import Clients, window_of
from loreloop.learn.examples import Mark
from loreloop.learn.learners.relative import Judged, Posed, Relative
from loreloop.learn.learners.surrogate import Floats, sigmoid
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.settings import KtoSettings
from loreloop.protocol.errors import BadRequest


@dataclass(frozen=True)
class Weights:
    """λ of either kind of answer."""

    wanted: float
    unwanted: float


def weights_of(settings: KtoSettings, marks: Sequence[Mark]) -> Weights:
    """What the settings say, or a balance: the commoner kind has 1, the rarer one as much as there are of both."""
    n_wanted = sum(mark.wanted for mark in marks)
    n_unwanted = len(marks) - n_wanted
    most = max(n_wanted, n_unwanted)
    wanted, unwanted = most / max(1, n_wanted), most / max(1, n_unwanted)
    return Weights(settings.wanted_weight or wanted, settings.unwanted_weight or unwanted)


class Kto(Relative[Mark]):
    """A learner of marks. Where a batch has one example, or all answers of it are the same, z is little worth."""

    def __init__(
        self,
        beta: float,
        weights: Weights,
        plan: Plan,
        client: tinker.TrainingClient,
        reference: tinker.TrainingClient,
        renderer: Renderer,
    ) -> None:
        super().__init__(plan, client, reference, renderer)
        self.beta, self.weights = beta, weights
        self.window: int | None = None  # the most tokens that the model takes, where that is known

    @classmethod
    async def of(
        cls, plan: Plan, clients: Clients, renderer: Renderer, settings: KtoSettings, marks: Sequence[Mark]
    ) -> Kto:
        """With the run's clients; `marks` are all that it learns from, whose balance decides on the weights."""
        client, reference = await clients.training(), await clients.reference()
        learner = cls(settings.beta, weights_of(settings, marks), plan, client, reference, renderer)
        learner.window = await window_of(clients.service, plan.base_model)
        return learner

    def posed(self, batch: Sequence[Mark]) -> list[Posed]:
        """The answers, and behind them every answer behind the next example's prompt."""
        # An answer behind another prompt is what the policy might say there by accident, which is all that z has to
        # measure.
        shifted = zip([*batch[1:], *batch[:1]], batch, strict=True) if len(batch) > 1 else ()
        # The run holds its examples, so the identity of one is its name for as long as the learner lives.
        own, others = (
            [Posed((id(asked), id(said)), asked.prompt, said.answer) for asked, said in pairs]
            for pairs in ([(one, one) for one in batch], shifted)
        )
        return own + [one for one in others if self._can_stand(one)]

    def _can_stand(self, one: Posed) -> bool:
        """Whether an answer behind another's prompt can be asked about: a long prompt and a long answer, of which each
        fits by itself, may be too long together, and a template may not take them. Such a pair is left out of z."""
        try:
            data = self.renderer.going_on(one.prompt, one.answer)
        except BadRequest:
            return False
        return self.window is None or all(datum.model_input.length <= self.window for datum in data)

    def judged(self, relative: Floats, batch: Sequence[Mark]) -> Judged:
        """`margin` is how far the mean reward β · r of wanted answers lies above that of the others."""
        wanted = np.array([mark.wanted for mark in batch])
        return kto_loss(relative, wanted, self.beta, self.weights)


def kto_loss(relative: Floats, wanted: npt.NDArray[np.bool_], beta: float, weights: Weights) -> Judged:
    """The loss of marked answers; `relative` has r of these, then of the answers from which z is estimated."""
    own, others = relative[: len(wanted)], relative[len(wanted) :]
    # The estimate may fall below zero, which the divergence that it stands for cannot.
    z = max(0.0, float(others.mean())) if len(others) else 0.0
    sign, factor = np.where(wanted, 1.0, -1.0), np.where(wanted, weights.wanted, weights.unwanted)
    values = sigmoid(beta * sign * (own - z))
    slopes = -sign * factor * beta * values * (1 - values) / len(wanted)
    metrics = {"loss": float((factor * (1 - values)).mean()), "divergence": z}
    kinds = {"wanted_reward": own[wanted], "unwanted_reward": own[~wanted]}
    # A batch may hold one kind alone, of which there is no difference to tell.
    metrics |= {name: float(beta * rewards.mean()) for name, rewards in kinds.items() if len(rewards)}
    if len(metrics) == 4:
        metrics["margin"] = metrics["wanted_reward"] - metrics["unwanted_reward"]
    # The baseline carries no gradient: it says where the others stand and is nothing to be moved.
    return Judged(np.concatenate([slopes, np.zeros(len(others))]), metrics)

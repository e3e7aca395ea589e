"""DPO: a preferred answer becomes likelier than the other one, relative to the model that the run began with.

With r(y) = log π(y|x) − log π_ref(y|x) and the margin m = β · (r(chosen) − r(rejected)), the loss of a pair is
−(1 − ε) · log σ(m) − ε · log σ(−m). The batch's loss is the mean; by m a pair's slope is ε · σ(m) − (1 − ε) · σ(−m).
Rafailov et al. 2023, arXiv 2305.18290, equation 7; ε > 0 is the conservative variant of its authors' notes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tinker

from loreloop.learn.clients import Clients
from loreloop.learn.examples import Preference
from loreloop.learn.learners.relative import Judged, Posed, Relative
from loreloop.learn.learners.surrogate import Floats, sigmoid
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.settings import DpoSettings


class Dpo(Relative[Preference]):
    """A learner of preferences."""

    def __init__(
        self,
        settings: DpoSettings,
        plan: Plan,
        client: tinker.TrainingClient,
        reference: tinker.TrainingClient,
        renderer: Renderer,
    ) -> None:
        super().__init__(plan, client, reference, renderer)
        self.settings = settings

    @classmethod
    async def of(cls, plan: Plan, clients: Clients, renderer: Renderer, settings: DpoSettings) -> Dpo:
        """With the run's clients."""
        return cls(settings, plan, await clients.training(), await clients.reference(), renderer)

    def posed(self, batch: Sequence[Preference]) -> list[Posed]:
        """The chosen answers, then the rejected ones."""
        # The run holds its examples, so the identity of one is its name for as long as the learner lives.
        chosen = [Posed((id(one), "chosen"), one.prompt, one.chosen) for one in batch]
        return chosen + [Posed((id(one), "rejected"), one.prompt, one.rejected) for one in batch]

    def judged(self, relative: Floats, batch: Sequence[Preference]) -> Judged:
        """`margin` is the mean of m, and `accuracy` the share of pairs with m above 0."""
        return dpo_loss(relative, self.settings.beta, self.settings.label_smoothing)


def dpo_loss(relative: Floats, beta: float, label_smoothing: float = 0.0) -> Judged:
    """The loss of pairs; `relative` has r of the chosen, then of the rejected answers."""
    # One forward pass for both halves, so that a pair's two numbers come from the same weights.
    chosen, rejected = np.split(relative, 2)
    margins = beta * (chosen - rejected)
    # By `logaddexp`, which stays finite where −log σ(m) would be the logarithm of 0.
    losses = (1 - label_smoothing) * np.logaddexp(0, -margins) + label_smoothing * np.logaddexp(0, margins)
    slopes = beta * (label_smoothing * sigmoid(margins) - (1 - label_smoothing) * sigmoid(-margins)) / len(margins)
    metrics = {
        "loss": float(losses.mean()),
        "margin": float(margins.mean()),
        "accuracy": float((margins > 0).mean()),
        "chosen_reward": float(beta * chosen.mean()),
        "rejected_reward": float(beta * rejected.mean()),
    }
    return Judged(np.concatenate([slopes, -slopes]), metrics)

"""importance_sampling: Σ −r · A, with r = π / π_sampler; the gradient flows through r and nothing is clipped."""

from __future__ import annotations

from torch import Tensor

from loreloop.engine.losses.loss import Config, Inputs, PolicyLoss, ratio


class ImportanceSampling(PolicyLoss):
    """The policy gradient with importance weights, for samples of slightly older weights."""

    def __call__(self, logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
        return -(ratio(logp, inputs) * inputs["advantages"]).sum()

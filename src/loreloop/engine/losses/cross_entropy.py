"""cross_entropy: Σ −w · logp. Weights may be negative, zero, or (N, K) over several targets; left out, they are 1.

Nothing is normalised.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from loreloop.engine.losses.loss import Config, Inputs


class CrossEntropy:
    """The weighted negative log-likelihood of the targets, summed and not averaged."""

    required: tuple[str, ...] = ("target_tokens",)
    optional: tuple[str, ...] = ("weights",)
    config: Config = MappingProxyType({})

    def __call__(self, logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
        weights = inputs.get("weights")
        return -(logp if weights is None else weights * logp).sum()

    def active(self, inputs: Inputs) -> Tensor:
        """Where the weight is not zero, in the shape of the targets; everywhere without weights."""
        weights = inputs.get("weights")
        return torch.ones_like(inputs["target_tokens"], dtype=torch.bool) if weights is None else weights != 0

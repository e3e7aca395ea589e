"""dro: Σ −(logp · A − ½ β (logp − logprobs)²). The square acts on every token, also where A is zero."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from loreloop.engine.losses.loss import Config, Inputs, PolicyLoss


class Dro(PolicyLoss):
    """Direct reward optimisation (Richemond et al., 2024), a squared pull towards the sampler; `beta` is its
    strength."""

    config = MappingProxyType({"beta": 0.05})

    def __call__(self, logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
        square = (logp - inputs["logprobs"]) ** 2
        return -(logp * inputs["advantages"] - 0.5 * config["beta"] * square).sum()

    def active(self, inputs: Inputs) -> Tensor:
        """Everywhere, since the square acts on masked tokens too."""
        return torch.ones_like(inputs["advantages"], dtype=torch.bool)

"""stable_reinforce, our substitute for an objective that is not published:

    Σ −sg(min(r, 2)) · A · logp  +  kl_coeff · ½ (logp − logprobs)²

Truncated importance sampling bounds the weight of tokens that the sampler thought unlikely; the square (whose gradient
is that of the KL divergence to the sampler, to first order) pulls the policy back. Both act on sampled tokens only:
those that provenance spans name, else those with an advantage.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from loreloop.engine.losses.loss import Config, Inputs, PolicyLoss, ratio

RATIO_CAP = 2.0


class StableReinforce(PolicyLoss):
    """Truncated importance sampling with a quadratic pull to the sampler; `kl_coeff` is the pull's strength."""

    config = MappingProxyType({"kl_coeff": 0.0})

    def __call__(self, logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
        sampled = self.active(inputs)
        weight = ratio(logp.detach(), inputs).clamp(max=RATIO_CAP)
        reinforce = -(weight * inputs["advantages"] * logp)
        pull = config["kl_coeff"] * 0.5 * (logp - inputs["logprobs"]) ** 2
        # Not multiplied by the mask: what is outside may be infinite, and ∞ · 0 is NaN.
        return torch.where(sampled, reinforce + pull, torch.zeros_like(logp)).sum()

    def active(self, inputs: Inputs) -> Tensor:
        """The tokens that a sampler drew, where the client said so, else those with an advantage; bool."""
        sampled = inputs.get("sampled")
        return inputs["advantages"] != 0 if sampled is None else sampled

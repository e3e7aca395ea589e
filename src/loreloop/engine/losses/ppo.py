"""ppo: Σ −min(r · A, clip(r, low, high) · A). The thresholds are bounds on the ratio itself, 0.8 and 1.2 by default."""

from __future__ import annotations

import torch
from torch import Tensor

from loreloop.engine.losses.loss import CLIP_CONFIG, CLIP_INPUTS, Config, Inputs, PolicyLoss, clipped, ratio


class Ppo(PolicyLoss):
    """PPO's clipped surrogate (Schulman et al., 2017), negated, without a value or an entropy term."""

    optional = CLIP_INPUTS
    config = CLIP_CONFIG

    def __call__(self, logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
        r, advantages = ratio(logp, inputs), inputs["advantages"]
        return -torch.minimum(r * advantages, clipped(r, inputs, config) * advantages).sum()

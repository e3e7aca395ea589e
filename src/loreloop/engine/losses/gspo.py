"""gspo: PPO with one ratio a sequence, s = exp(mean over the mask of (sg logp − logprobs)), in its token form
s_t = s · exp(logp − sg logp), so that each token's gradient carries the sequence's ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from loreloop.engine.losses.loss import CLIP_CONFIG, CLIP_INPUTS, POLICY_INPUTS, Config, Inputs, PolicyLoss, clipped


class Gspo(PolicyLoss):
    """Group sequence policy optimisation (Zheng et al., 2025), in its token form; the mask says which tokens the
    sequence's ratio is made of."""

    required = (*POLICY_INPUTS, "sequence_ratio_mask")
    optional = CLIP_INPUTS
    config = CLIP_CONFIG

    def __call__(self, logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
        masked = inputs["sequence_ratio_mask"] != 0
        difference = (logp.detach() - inputs["logprobs"])[masked]
        # A mean over nothing would be NaN and reach every weight; a sequence without masked tokens has the ratio one.
        log_s = difference.mean() if difference.numel() else torch.zeros((), device=logp.device)
        advantages = inputs["advantages"]
        # A token without an advantage adds nothing anyway, but ∞ · 0 would.
        log_s = torch.where(advantages != 0, log_s, torch.zeros_like(logp))
        # The difference is zero in value and one in derivative: each token's gradient carries the whole sequence's
        # ratio.
        s = torch.exp(log_s + logp - logp.detach())
        return -torch.minimum(s * advantages, clipped(s, inputs, config) * advantages).sum()

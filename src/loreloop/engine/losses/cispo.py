"""cispo: Σ −sg(clip(r, low, high)) · logp · A; a clipped token keeps its gradient, only its weight is bounded."""

from __future__ import annotations

from torch import Tensor

from loreloop.engine.losses.loss import CLIP_CONFIG, CLIP_INPUTS, Config, Inputs, PolicyLoss, clipped, ratio


class Cispo(PolicyLoss):
    """CISPO (MiniMax-M1, 2025): REINFORCE with a clipped importance weight that carries no gradient."""

    optional = CLIP_INPUTS
    config = CLIP_CONFIG

    def __call__(self, logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
        # Detached: the ratio only weighs, and the gradient comes through `logp` alone, also where the ratio was
        # clipped.
        weight = clipped(ratio(logp.detach(), inputs), inputs, config)
        return -(weight * logp * inputs["advantages"]).sum()

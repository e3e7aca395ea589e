"""cross_entropy: Σ −w · logp. Weights may be negative, zero, or (N, K) over several targets; nothing is normalised."""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor

from loreloop.engine.losses.loss import Config, Inputs


class CrossEntropy:
    required = ("target_tokens", "weights")
    optional: tuple[str, ...] = ()
    config: Config = MappingProxyType({})

    def __call__(self, logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
        return -(inputs["weights"] * logp).sum()

    def active(self, inputs: Inputs) -> Tensor:
        return inputs["weights"] != 0

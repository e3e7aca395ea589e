"""What a loss tells about itself, and the pieces that several share.

Pure functions over tensors of one datum, shape (N,) or (N, K). Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
Config = Mapping[str, float]

POLICY_INPUTS = ("target_tokens", "logprobs", "advantages")
CLIP_INPUTS = ("clip_low_threshold", "clip_high_threshold")
CLIP_CONFIG = MappingProxyType({"clip_low_threshold": 0.8, "clip_high_threshold": 1.2})


class Loss(Protocol):
    """`required` and `optional` name inputs; `config` names settings with their defaults."""

    @property
    def required(self) -> tuple[str, ...]:
        """The inputs without which the loss has no meaning."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """Inputs that the loss takes where they are given."""
        ...

    @property
    def config(self) -> Mapping[str, float]:
        """The settings by name, with their defaults."""
        ...

    def __call__(self, logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
        """The summed loss of one datum, a scalar. `inputs` may hold `sampled` (bool), the positions drawn by a
        sampler, where the client said so."""
        ...

    def active(self, inputs: Inputs) -> Tensor:
        """Where ∂loss/∂logp may differ from zero, bool."""
        ...


class PolicyLoss:
    """Base of the losses that weigh tokens by advantages."""

    required: tuple[str, ...] = POLICY_INPUTS
    optional: tuple[str, ...] = ()
    config: Mapping[str, float] = MappingProxyType({})

    def __call__(self, logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
        raise NotImplementedError

    def active(self, inputs: Inputs) -> Tensor:
        """Where the advantage is not zero, bool, in the shape of the advantages."""
        return inputs["advantages"] != 0


def ratio(logp: Tensor, inputs: Inputs) -> Tensor:
    """π / π_sampler of every token; 1 where the advantage is 0, so that a masked token's ratio cannot overflow."""
    difference = torch.where(inputs["advantages"] != 0, logp - inputs["logprobs"], torch.zeros_like(logp))
    return torch.exp(difference)


def clipped(r: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """`r` within its bounds; bounds of a token's own replace the ones of the configuration."""
    low = inputs.get("clip_low_threshold", torch.tensor(config["clip_low_threshold"]))
    high = inputs.get("clip_high_threshold", torch.tensor(config["clip_high_threshold"]))
    return torch.minimum(torch.maximum(r, low.to(r)), high.to(r))

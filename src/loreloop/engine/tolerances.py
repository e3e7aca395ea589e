"""How far training and sampling may lie apart in a set-up: the bounds of docs/hardware.md, as numbers.

Whether a difference is within them is asked here; how it is measured, `agreement.py` knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from loreloop.config import EngineConfig
from loreloop.engine.agreement import Difference
from loreloop.engine.precision import Precision
from loreloop.kernels import bf16_products

FP32_NATS, BF16_MEAN_NATS = 1e-4, 0.01


@dataclass(frozen=True)
class Tolerance:
    """The most nats for one token, and on average. `is_equal`: beyond that every bit is expected to be equal, but for
    parts of some models that are not our own."""

    largest: float = math.inf
    mean: float = math.inf
    is_equal: bool = False

    def holds(self, found: Difference) -> bool:
        """Whether a difference is within the bounds; one that is no number is not."""
        return found.largest <= self.largest and found.mean <= self.mean

    def in_words(self) -> str:
        """The bound in a few words, for a report."""
        if self.largest == 0:
            return "equal, bit for bit"
        if self.largest < math.inf:
            return f"at most {self.largest:g} nats for a token"
        return f"at most {self.mean:g} nats on average" + (", and equal for most models" if self.is_equal else "")


def documented(config: EngineConfig, precision: Precision, device: torch.device) -> Tolerance:
    """What the documentation promises of an engine with these settings, on this processor."""
    if config.deterministic:
        return Tolerance(largest=0.0, mean=0.0, is_equal=True)
    if precision == "fp32":
        return Tolerance(largest=FP32_NATS)
    # Products and attention are our own there, and add up in one order.
    own = bf16_products.supports(torch.empty(0, dtype=torch.bfloat16, device=device))
    return Tolerance(mean=BF16_MEAN_NATS, is_equal=own)

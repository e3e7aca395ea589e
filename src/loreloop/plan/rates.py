"""What a program gets of a device's published rates: shares that are assumed, each with a lowest and a highest value.

Nothing here was measured on such a device. `make bench-gpu` measures single products; its figures may be set in their
place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Shares of the published rates that are reached, and seconds that a layer and a message take however small.
    `overlap` is the share of the shorter of products and memory that goes on beside the longer one."""

    compute: float
    memory: float
    links: float
    layer_seconds: float
    message_seconds: float
    overlap: float = 1.0


# The middle one, and the ends of the error band.
LIKELY = Rates(compute=0.40, memory=0.65, links=0.60, layer_seconds=1.5e-4, message_seconds=2e-5)
SLOW = Rates(compute=0.20, memory=0.40, links=0.35, layer_seconds=4e-4, message_seconds=5e-5)
FAST = Rates(compute=0.60, memory=0.85, links=0.80, layer_seconds=5e-5, message_seconds=1e-5)

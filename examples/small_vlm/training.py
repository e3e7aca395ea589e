"""What the trainings share: the course of a rate, and states on disk that an interruption leaves whole."""

from __future__ import annotations

import math
from pathlib import Path

import torch


def rate_share(step: int, steps: int, warm_up: int) -> float:
    """The share of the highest rate at a step from 0: rises over `warm_up` steps, then falls by a cosine."""
    return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps) + 0.01)


def save(file: Path, state: dict[str, object]) -> None:
    """The file is the old one or the new one, never a part."""
    torch.save(state, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)

"""Views of drawings for training: moved, scaled and turned a little, recoloured, outlined, on other backgrounds.

Never mirrored, since arrows and letters are. All randomness comes from the generator given.

B batch, C channels, S side in pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]  # CLIP's, which image processors assume
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
GREY = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def normalise(image_BCSS: torch.Tensor) -> torch.Tensor:
    return (image_BCSS - MEAN) / STD


def varied(rgba_BSSC: np.ndarray, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random views (B, 3, S, S) in 0..1, and how each was moved, as `moved` takes it."""
    x_BCSS = torch.from_numpy(np.array(rgba_BSSC)).permute(0, 3, 1, 2).float() / 255
    alpha, n = x_BCSS[:, 3:], len(x_BCSS)
    moves_B23 = _moves(n, rng)
    view = moved(torch.cat((x_BCSS[:, :3] * alpha, alpha), 1), moves_B23, x_BCSS.shape[-1])
    colour, alpha = view[:, :3], view[:, 3:]
    outline = _edges(alpha) + _edges((colour * GREY).sum(1, keepdim=True))
    colour = torch.where(torch.rand(n, 1, 1, 1, generator=rng) < 0.6, _recoloured(colour, alpha, rng), colour)
    strength = torch.rand(n, 1, 1, 1, generator=rng) * (torch.rand(n, 1, 1, 1, generator=rng) < 0.4)
    colour = colour * (1 - (2.5 * outline * strength).clamp(0, 1))
    back = torch.rand(n, 3, 1, 1, generator=rng)
    white = (torch.rand(n, 1, 1, 1, generator=rng) < 0.5).float()
    return (colour + (white + (1 - white) * back) * (1 - alpha)).clamp(0, 1), moves_B23


def moved(x_BCHW: torch.Tensor, moves_B23: torch.Tensor, side: int, outside: str = "zeros") -> torch.Tensor:
    """Images or maps of features after their moves, `side` places a side."""
    grid = F.affine_grid(moves_B23, [len(x_BCHW), x_BCHW.shape[1], side, side], align_corners=False)
    return F.grid_sample(x_BCHW, grid, padding_mode=outside, align_corners=False)


def _moves(n: int, rng: torch.Generator) -> torch.Tensor:
    u = torch.rand(n, 5, generator=rng) * 2 - 1
    scale, stretch, turn = 1.15 + 0.3 * u[:, 0], 1 + 0.12 * u[:, 1], math.radians(15) * u[:, 2]
    cos, sin = turn.cos() * scale, turn.sin() * scale
    rows = torch.stack((cos * stretch, -sin * stretch, 0.2 * u[:, 3], sin, cos, 0.2 * u[:, 4]), 1)
    return rows.view(n, 2, 3)


def _recoloured(colour: torch.Tensor, alpha: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Gains and shifts a channel, saturation from none to more than there was; colours are premultiplied by alpha."""
    n = len(colour)
    grey = (colour * GREY).sum(1, keepdim=True)
    saturation = 1.5 * torch.rand(n, 1, 1, 1, generator=rng)
    saturation = saturation * (torch.rand(n, 1, 1, 1, generator=rng) > 0.1)
    mixed = grey + (colour - grey) * saturation
    gain = 1 + 0.4 * (torch.rand(n, 3, 1, 1, generator=rng) * 2 - 1)
    shift = 0.15 * (torch.rand(n, 3, 1, 1, generator=rng) * 2 - 1)
    return (mixed * gain + shift * alpha).clamp(0, 1).minimum(alpha)


def _edges(x_B1SS: torch.Tensor) -> torch.Tensor:
    """Where neighbouring pixels differ, widened to a pen's stroke."""
    down = (x_B1SS[:, :, 1:] - x_B1SS[:, :, :-1]).abs()
    right = (x_B1SS[:, :, :, 1:] - x_B1SS[:, :, :, :-1]).abs()
    edge = F.pad(down, (0, 0, 0, 1)) + F.pad(right, (0, 1))
    return F.max_pool2d(edge, 3, 1, 1)

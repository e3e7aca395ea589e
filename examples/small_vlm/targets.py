"""What the tower shall see: the teacher's features, of whole drawings and of their parts.

Both are turned to their principal directions and the strongest of these are held back, so that the many weak ones
count. A view that was moved gets the teacher's map moved alike: one look of the teacher serves all views.

N drawings, B batch, F features, K directions kept, P places (the tower's patches, row by row).
"""

from __future__ import annotations

import torch

from examples.small_vlm import views
from examples.small_vlm.drawings import Drawings

WHOLE, PART = 256, 128  # directions kept


class Targets:
    def __init__(self, drawings: Drawings, rows: list[int], side: int) -> None:
        self.side = side
        self.place = {n: k for k, n in enumerate(rows)}
        self.whole_NK = _evened(drawings.features_NF[rows], WHOLE)
        map_NHWF = torch.from_numpy(drawings.maps_NFHW[rows]).float().permute(0, 2, 3, 1)
        self.map_NKHW = _evened(map_NHWF.flatten(0, 2), PART).view(*map_NHWF.shape[:3], -1).permute(0, 3, 1, 2).half()

    def whole(self, chosen: list[int]) -> torch.Tensor:
        return self.whole_NK[[self.place[n] for n in chosen]]

    def parts(self, chosen: list[int], moves_B23: torch.Tensor) -> torch.Tensor:
        """(B, P, K), for views moved so."""
        map_BKHW = self.map_NKHW[[self.place[n] for n in chosen]].float()
        return views.moved(map_BKHW, moves_B23, self.side, outside="border").flatten(2).transpose(1, 2)


def _evened(x_NF: torch.Tensor, n: int) -> torch.Tensor:
    """Along the n principal directions, each divided by the square root of its deviation (with few drawings, fewer)."""
    centred_NF = x_NF - x_NF.mean(0)
    variance_F, direction_FF = torch.linalg.eigh(torch.cov(centred_NF.T))
    n = min(n, len(x_NF) - 1, len(variance_F))
    return centred_NF @ (direction_FF[:, -n:] / variance_F[-n:].clamp(min=1e-6) ** 0.25)

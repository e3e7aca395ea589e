"""Which experts the rows of one batch go to: written down by layer, or given and followed.

Only the discrete choice is given; scores always come from the live router. Knows no weights.

Legend: T tokens, K experts a token, L layers that route.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FREE = -1  # in given choices: the router decides


class Routes:
    """The choices of a batch. `given_LTK` are to be followed; `n_strayed` counts where the router would not have."""

    def __init__(self, layers: Sequence[int], given_LTK: Tensor | None = None) -> None:
        self.given = {} if given_LTK is None else dict(zip(layers, given_LTK.long(), strict=True))
        self.chosen: dict[int, Tensor] = {}
        self.strayed: dict[int, Tensor] = {}
        self.layers = list(layers)

    def settle(self, layer: int, own_TK: Tensor) -> Tensor:
        """The choice that counts where the router's own is `own_TK`; a second pass over a layer repeats the first's."""
        if layer in self.chosen:
            return self.chosen[layer].to(own_TK.device, torch.int64)
        ids_TK = own_TK
        if layer in self.given:
            given_TK = self.given[layer].to(own_TK.device)
            ids_TK = torch.where(given_TK == FREE, own_TK, given_TK)
            self.strayed[layer] = (ids_TK[:, :, None] != own_TK[:, None]).all(-1).sum(-1)
        self.chosen[layer] = ids_TK.to(torch.int16)
        return ids_TK

    def chosen_LTK(self) -> Tensor:
        """(L, T, K) int16, once every layer has been passed."""
        return torch.stack([self.chosen[layer] for layer in self.layers])

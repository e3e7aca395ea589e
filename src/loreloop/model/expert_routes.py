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
    """The choices of a batch. Given ones are followed, or (`follow` off) only compared with."""

    def __init__(self, layers: Sequence[int], given_LTK: Tensor | None = None, *, follow: bool = True) -> None:
        self.layers, self.follow = list(layers), follow
        self.given = {} if given_LTK is None else dict(zip(layers, given_LTK.long(), strict=True))
        # Two notes are kept because they differ under replay: `chosen` is what was computed, `own` what the router
        # wanted.
        self.chosen: dict[int, Tensor] = {}
        self.own: dict[int, Tensor] = {}

    def settle(self, layer: int, own_TK: Tensor) -> Tensor:
        """The choice that counts where the router's own is `own_TK`; a second pass over a layer repeats the first's."""
        # Activations may be computed twice. The second time must not choose again: in bf16 the router could decide
        # otherwise, and the gradient would be that of other experts.
        if layer in self.chosen:
            return self.chosen[layer].to(own_TK.device, torch.int64)
        ids_TK = own_TK
        if layer in self.given and self.follow:
            given_TK = self.given[layer].to(own_TK.device)
            # A token without a recorded route keeps the router's choice, so that one batch may mix both kinds.
            ids_TK = torch.where(given_TK == FREE, own_TK, given_TK)
        # Two bytes hold every expert's number (`MOST_EXPERTS`), and routes are kept for every token of the cache.
        self.chosen[layer], self.own[layer] = ids_TK.to(torch.int16), own_TK.to(torch.int16)
        return ids_TK

    def chosen_LTK(self) -> Tensor:
        """(L, T, K) int16, once every layer has been passed."""
        return torch.stack([self.chosen[layer] for layer in self.layers])

    def counts_L3T(self) -> Tensor | None:
        """Of each layer and token: how many choices were given, how many of them were left out of those that counted,
        and how many the router by itself would have left out. None: nothing was given."""
        if not self.given:
            return None
        layers = []
        for layer in self.layers:
            given_TK = self.given[layer].to(self.chosen[layer].device)
            known_TK = given_TK != FREE
            # A choice is lost where no choice of the other set is equal to it; the order of a token's experts means
            # nothing.
            lost = [
                (known_TK & (given_TK[:, :, None] != ids[layer][:, None]).all(-1)).sum(-1)
                for ids in (self.chosen, self.own)
            ]
            layers.append(torch.stack((known_TK.sum(-1), *lost)))
        return torch.stack(layers)

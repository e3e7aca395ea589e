"""Recorded routes of a batch's tokens: checked, and made part of what tells two tokens apart.

Equal ids that went to different experts must not be computed once. Packing sees an id of its own for each token whose
route was recorded, the same for equal tokens on equal routes.

Legend: T tokens, L layers that route, K experts a token.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loreloop.engine.packing import Packed
from loreloop.model.routes import FREE
from loreloop.model.spec import MoeSpec
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import FREE_ROUTE, ForwardBackward, length_of

Ids = NDArray[np.int64]
FIRST_ID = 1 << 40  # above all ids of text; those of images are below zero


def check_routes(op: ForwardBackward, moe: MoeSpec | None) -> None:
    """Routes must be as many as the tokens have, of experts that there are."""
    for index, datum in enumerate(op.data):
        if datum.routes is None or moe is None:
            continue
        n_tokens, n_each = length_of(datum.chunks), len(moe.layers) * moe.top_k
        ids = np.frombuffer(datum.routes, "<i2") if len(datum.routes) % 2 == 0 else np.empty(0, np.int16)
        if len(ids) != n_tokens * n_each:
            raise BadRequest(
                f"Datum {index} has {len(ids)} routes; {n_tokens} tokens of this model have {n_each} each."
            )
        if len(ids) and (ids.min() < FREE or ids.max() >= moe.n_experts):
            raise BadRequest(f"Datum {index} routes to the expert {ids.max()}; there are {moe.n_experts}.")


class RouteBook:
    """Which id stands for which token on which route."""

    def __init__(self, moe: MoeSpec | None) -> None:
        self.shape = (len(moe.layers), moe.top_k) if moe else (0, 0)
        self.free = FREE_ROUTE * (self.shape[0] * self.shape[1])
        self.ids: dict[tuple[int, bytes], int] = {}

    def identities(self, tokens_T: Ids, routes: bytes | None) -> Ids:
        """The tokens of a sequence as packing is to see them."""
        if not routes or not self.free:
            return tokens_T
        width = len(self.free)
        pairs = zip(tokens_T.tolist(), (routes[at : at + width] for at in range(0, len(routes), width)), strict=True)
        return np.array([self._id(token, route) for token, route in pairs], np.int64)

    def _id(self, token: int, route: bytes) -> int:
        return token if route == self.free else self.ids.setdefault((token, route), FIRST_ID + len(self.ids))

    def read(self, packed: Packed) -> tuple[Packed, Tensor | None]:
        """With the tokens' own ids, and routes (L, T, K) int16 where any of them is recorded."""
        known_T = packed.tokens_T >= FIRST_ID
        if not known_T.any():
            return packed, None
        pairs = list(self.ids)
        mine = [pairs[number] for number in (packed.tokens_T[known_T] - FIRST_ID).tolist()]
        tokens_T, given_TLK = packed.tokens_T.copy(), np.full((len(known_T), *self.shape), FREE, np.int16)
        tokens_T[known_T] = [token for token, _ in mine]
        given_TLK[known_T] = np.frombuffer(b"".join(route for _, route in mine), "<i2").reshape(-1, *self.shape)
        return replace(packed, tokens_T=tokens_T), torch.from_numpy(given_TLK).transpose(0, 1)

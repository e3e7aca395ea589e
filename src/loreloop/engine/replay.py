"""Recorded routes of a batch's tokens: checked, and made part of what tells two tokens apart.

Equal ids that went to different experts must not be computed once. Each distinct route gets a number, and a token's
identity for packing is its id and that number.

Legend: T tokens, L layers that route, K experts a token.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loreloop.engine.checks import datum_tokens
from loreloop.model.routes import FREE
from loreloop.model.spec import MoeSpec
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import Datum, ForwardBackward

Ids = NDArray[np.int64]
STEP = 1 << 40  # beyond all ids, of either sign


def check_routes(op: ForwardBackward, moe: MoeSpec | None) -> None:
    """Routes must be as many as the tokens have, of experts that there are."""
    for index, datum in enumerate(op.data):
        if datum.routes is None or moe is None:
            continue
        n_tokens, n_each = len(datum_tokens(datum)), len(moe.layers) * moe.top_k
        ids = np.frombuffer(datum.routes, "<i2") if len(datum.routes) % 2 == 0 else np.empty(0, np.int16)
        if len(ids) != n_tokens * n_each:
            raise BadRequest(
                f"Datum {index} has {len(ids)} routes; {n_tokens} tokens of this model have {n_each} each."
            )
        if len(ids) and (ids.min() < FREE or ids.max() >= moe.n_experts):
            raise BadRequest(f"Datum {index} routes to the expert {ids.max()}; there are {moe.n_experts}.")


class RouteBook:
    """The distinct routes of some data; number 0 is free."""

    def __init__(self, moe: MoeSpec | None) -> None:
        self.moe = moe
        self.width = 2 * len(moe.layers) * moe.top_k if moe else 0
        self.numbers: dict[bytes, int] = {FREE.to_bytes(1, "little", signed=True) * self.width: 0}

    def identities(self, datum: Datum) -> Ids:
        """The identities of a datum's tokens."""
        tokens, routes = datum_tokens(datum), datum.routes
        if not routes or not self.width:
            return tokens
        rows = (routes[at : at + self.width] for at in range(0, len(routes), self.width))
        numbers = [self.numbers.setdefault(row, len(self.numbers)) for row in rows]
        return tokens + np.array(numbers, np.int64) * STEP

    def read(self, identities_T: Ids) -> tuple[Ids, Tensor | None]:
        """Ids, and routes (L, T, K) int16 where any of them is recorded."""
        numbers_T = (identities_T + STEP // 2) // STEP
        if self.moe is None or not numbers_T.any():
            return identities_T - numbers_T * STEP, None
        book = np.frombuffer(b"".join(self.numbers), "<i2").reshape(-1, len(self.moe.layers), self.moe.top_k)
        return identities_T - numbers_T * STEP, torch.from_numpy(book[numbers_T]).transpose(0, 1)

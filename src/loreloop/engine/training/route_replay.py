"""Recorded routes of a batch's tokens: checked, and made part of what tells two tokens apart.

Equal ids that went to different experts must not be computed once. Each distinct route gets a number, and a token's
identity for packing stands for its id and that number.

Legend: T tokens, L layers that route, K experts a token, N routes (tokens × layers), or tokens of one sequence.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loreloop.model.expert_routes import FREE
from loreloop.model.spec import MoeSpec
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import ForwardBackward, length_of

Ids = NDArray[np.int64]
FIRST = 1 << 40  # beyond all ids of text; those of images are below zero


def check_routes(op: ForwardBackward, moe: MoeSpec | None) -> None:
    """Routes must be as many as the tokens have, of experts that there are."""
    for index, datum in enumerate(op.data):
        if not datum.routes:
            continue
        if moe is None or not moe.layers:
            raise BadRequest(f"Datum {index} has routes, but this base model has no experts.")
        # Tokens of images count too: they are routed like any other.
        n_tokens, n_each = length_of(datum.chunks), len(moe.layers) * moe.top_k
        ids = np.frombuffer(datum.routes, "<i2") if len(datum.routes) % 2 == 0 else np.empty(0, np.int16)
        if len(ids) != n_tokens * n_each:
            raise BadRequest(
                f"Datum {index} has {len(ids)} routes; {n_tokens} tokens of this model have {n_each} each."
            )
        # An id beyond the experts would index beyond their weights, so it must not get any further.
        wrong = ids[(ids < FREE) | (ids >= moe.n_experts)]
        if len(wrong):
            raise BadRequest(f"Datum {index} routes to the expert {wrong[0]}; there are {moe.n_experts}.")
        sorted_NK = np.sort(ids.reshape(-1, moe.top_k), axis=1)
        # Equal neighbours after sorting are an expert named twice; FREE sorts first, so one look finds a partly open
        # route.
        twice_N = (np.diff(sorted_NK, axis=1) == 0).any(1) | (sorted_NK[:, 0] == FREE)
        if (twice_N & (sorted_NK != FREE).any(1)).any():
            raise BadRequest(
                f"Datum {index} routes a token to one expert twice, or to some experts and leaves others open; a route "
                f"is {moe.top_k} different experts, or {FREE} throughout."
            )


class RouteReplay:
    """The distinct routes of some data, number 0 being free, and the identities of tokens that have others."""

    def __init__(self, moe: MoeSpec | None) -> None:
        self.moe = moe
        self.width = 2 * len(moe.layers) * moe.top_k if moe else 0
        # The route of nothing but FREE has number 0, so that open tokens keep their plain ids and share prefixes with
        # data that have no routes at all.
        self.numbers: dict[bytes, int] = {FREE.to_bytes(1, "little", signed=True) * self.width: 0}
        self.tokens: dict[tuple[int, int], int] = {}  # (id, number of its route) → place in the order of arrival
        self.arrays: tuple[Ids, NDArray[np.int16]] | None = None  # both in order, once all are known

    def identities(self, tokens_N: Ids, routes: bytes | None) -> Ids:
        """The identities of a sequence's tokens: their ids, and for those with a route numbers that no id has."""
        if not routes or not self.width:
            return tokens_N
        rows = (routes[start : start + self.width] for start in range(0, len(routes), self.width))
        # New pairs may come in now, and the arrays would not have them.
        self.arrays = None
        pairs = [
            (int(token), self.numbers.setdefault(row, len(self.numbers)))
            for token, row in zip(tokens_N, rows, strict=True)
        ]
        return np.array(
            [FIRST + self.tokens.setdefault(pair, len(self.tokens)) if pair[1] else pair[0] for pair in pairs], np.int64
        )

    def read(self, identities_T: Ids) -> tuple[Ids, Tensor | None]:
        """Ids, and routes (L, T, K) int16 where any of them is recorded."""
        routed_T = identities_T >= FIRST
        if self.moe is None or not routed_T.any():
            return identities_T, None
        if self.arrays is None:
            book = np.frombuffer(b"".join(self.numbers), "<i2").reshape(-1, len(self.moe.layers), self.moe.top_k)
            self.arrays = np.array(list(self.tokens), np.int64), book
        # Dictionaries keep the order of arrival, which is the number that an identity was given.
        pairs, book = self.arrays
        tokens_T, numbers_T = identities_T.copy(), np.zeros_like(identities_T)
        tokens_T[routed_T], numbers_T[routed_T] = pairs[identities_T[routed_T] - FIRST].T
        return tokens_T, torch.from_numpy(book[numbers_T]).transpose(0, 1)

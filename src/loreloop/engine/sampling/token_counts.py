"""Which tokens a text holds, and how often: kept up to date token by token, read as arrays at every step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class TokenCounts:
    """`ids` are distinct, in the order of their first coming; `counts` stand beside them."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._places: dict[int, int] = {}
        self._ids, self._counts = np.zeros(16, np.int64), np.zeros(16, np.int64)
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Counts one more occurrence, in constant time on average."""
        place = self._places.setdefault(token, len(self._places))
        # Doubled when full, so that a long text does not copy its counts at every new token.
        if place == len(self._ids):
            self._ids, self._counts = (np.concatenate((old, np.zeros_like(old))) for old in (self._ids, self._counts))
        self._ids[place] = token
        self._counts[place] += 1

    @property
    def ids(self) -> NDArray[np.int64]:
        """The distinct tokens (n,), in the order of their first coming; a view that later additions may change."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each of `ids` occurs, (n,); a view as well."""
        return self._counts[: len(self._places)]

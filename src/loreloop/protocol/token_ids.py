"""Token ids and log-probabilities as they are sent and kept: bytes, whose layout this file alone knows.

Ids are int32 and log-probabilities float32, little-endian, one behind the other. The types keep them from being taken
for other bytes; in frames, journal and files they are plain bytes all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NewType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loreloop.protocol.errors import BadRequest

TokenIds = NewType("TokenIds", bytes)
Logprobs = NewType("Logprobs", bytes)
_ID, _LOGPROB = np.dtype("<i4"), np.dtype("<f4")
_NO_TOKEN = np.array(-1, _ID).tobytes()


def pack_ids(ids: ArrayLike) -> TokenIds:
    """Ids of any integer array as int32 bytes; OverflowError from numpy for an id beyond 32 bits."""
    return TokenIds(np.asarray(ids, _ID).tobytes())


def unpack_ids(tokens: TokenIds) -> NDArray[np.int32]:
    """A read-only view of the ids, (N,)."""
    return np.frombuffer(tokens, _ID)


def n_ids(tokens: TokenIds) -> int:
    """The number of ids, without looking at them."""
    return len(tokens) // _ID.itemsize


def join_ids(parts: Iterable[TokenIds]) -> TokenIds:
    """Several runs of ids as one."""
    return TokenIds(b"".join(parts))


def no_ids(n: int) -> TokenIds:
    """-1, n times: positions that hold no token of the vocabulary, as an image's do."""
    return TokenIds(_NO_TOKEN * n)


def sent_ids(where: str, data: bytes) -> TokenIds:
    """The ids that a client sent as bytes."""
    # Whether the ids are in the vocabulary is checked later, where the model is known.
    if len(data) % _ID.itemsize:
        raise BadRequest(f"{where}: the token bytes are not a whole number of int32 values.")
    return TokenIds(data)


def pack_logprobs(values: ArrayLike) -> Logprobs:
    """Values of any float array as float32 bytes."""
    return Logprobs(np.asarray(values, _LOGPROB).tobytes())


def unpack_logprobs(logprobs: Logprobs) -> NDArray[np.float32]:
    """A read-only view of the values, (N,)."""
    return np.frombuffer(logprobs, _LOGPROB)


def join_logprobs(parts: Iterable[Logprobs]) -> Logprobs:
    """Several runs of log-probabilities as one."""
    return Logprobs(b"".join(parts))

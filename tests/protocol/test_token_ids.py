"""Token ids and log-probabilities as bytes: the layout that wire, journal and files have."""

import numpy as np
import pytest

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.token_ids import (
    join_ids,
    n_ids,
    no_ids,
    pack_ids,
    pack_logprobs,
    sent_ids,
    unpack_ids,
    unpack_logprobs,
)


def test_ids_are_little_endian_int32() -> None:
    ids = pack_ids([1, 258])
    assert ids == b"\x01\0\0\0\x02\x01\0\0"
    assert (n_ids(ids), unpack_ids(ids).tolist()) == (2, [1, 258])
    assert pack_ids(np.array([1, 258], np.int64)) == ids
    assert unpack_ids(join_ids([ids, no_ids(2)])).tolist() == [1, 258, -1, -1]
    assert pack_ids([]) == b""


def test_logprobs_are_little_endian_float32() -> None:
    assert pack_logprobs([-0.5]) == b"\0\0\0\xbf"
    assert unpack_logprobs(pack_logprobs([-0.5, -2.25])).tolist() == [-0.5, -2.25]


def test_half_an_id_is_refused() -> None:
    assert sent_ids("Datum 0", b"\x01\0\0\0") == pack_ids([1])
    with pytest.raises(BadRequest, match="Datum 0: the token bytes are not a whole number"):
        sent_ids("Datum 0", b"\x01\0\0\0\0")

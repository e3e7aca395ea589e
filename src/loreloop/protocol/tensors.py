"""Arrays as plain values: dtype, shape and little-endian bytes, so that they can be journaled and sent as they are.

Knows numpy for reading and writing the bytes, and no device.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

DType = Literal["float32", "int64", "int32"]


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """One array. `data` holds `prod(shape)` values of `dtype`, row-major, little-endian."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytes

    def numpy(self) -> NDArray[np.generic]:
        """A read-only view of the bytes, in `shape`."""
        # A view without a copy; whoever wants to write to it makes one.
        return np.frombuffer(self.data, dtype=np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)


def tensor_of(array: NDArray[np.generic]) -> Tensor:
    """The value of a float32, int64 or int32 array."""
    name = array.dtype.name
    # Other dtypes are a fault of our own code, since what clients send is checked when it is decoded.
    assert name in get_args(DType), name
    return Tensor(cast(DType, name), tuple(array.shape), np.ascontiguousarray(array).tobytes())

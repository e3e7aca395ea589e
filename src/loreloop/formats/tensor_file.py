"""Writes safetensors files straight from tensors' memory, atomically, and opens those that were written.

The library's own writer copies every tensor into one byte string first; a model state of hundreds of megabytes should
not double for being saved. Reading is the library's, which calls every file missing that it cannot open.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loreloop.protocol.checksums import FileSum, crc32_text
from loreloop.protocol.errors import OutOfService, reading_trouble
from loreloop.protocol.syncing import sync_open

Piece = bytes | ctypes.Array[ctypes.c_char]
DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, durable: bool = True
) -> FileSum:
    """Writes `path` by way of a temporary neighbour; gives its size and checksum.

    The checksum is of what was in memory, computed by a second thread while this one writes, so it costs no time.

    Processes may die at any time; `durable` ones survive the machine's loss of power as well. Tensors that lie one
    behind the other in memory, in the order given, are written in one piece, several times as fast.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        n_bytes = tensor.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + n_bytes],
        }
        offset += n_bytes
    head = json.dumps(header, separators=(",", ":")).encode()
    # The format wants the data to begin at a multiple of eight bytes.
    head += b" " * (-len(head) % 8)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    pieces: list[Piece] = [len(head).to_bytes(8, "little") + head, *_pieces(tensors.values())]
    with temporary.open("wb") as file, ThreadPoolExecutor(1) as summing:
        crc32 = summing.submit(_crc32, pieces)
        for piece in pieces:
            file.write(piece)
        if durable:
            file.flush()
            sync_open(file.fileno(), temporary)
    # The file gets its name only when it is complete, so a reader never sees a part of it.
    temporary.replace(path)
    return FileSum(8 + len(head) + offset, crc32_text(crc32.result()))


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """The library's reader of a file. OutOfService where the file cannot be read just now; else the library's errors:
    FileNotFoundError where there is none, SafetensorError where it is damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise _why_not_opened(path) or error from None
    except (OSError, SafetensorError) as error:
        raise reading_trouble(error, path) or error from None


def check_finite(path: Path) -> None:
    """SafetensorError where the file is damaged, or holds what is no number."""
    with open_tensors(path) as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            if not bool(torch.isfinite(file.get_tensor(name)).all()):
                raise SafetensorError(f"{name} holds NaN or infinite values")


def _why_not_opened(path: Path) -> OutOfService | None:
    """What keeps a file that is there from being opened; None where there is none."""
    try:
        path.open("rb").close()
    except OSError as error:
        return reading_trouble(error, path)
    return reading_trouble(OSError(errno.EAGAIN, ""), path)  # it can be opened by now


def _crc32(pieces: Sequence[Piece]) -> int:
    crc32 = 0
    for piece in pieces:
        crc32 = zlib.crc32(piece, crc32)
    return crc32


def _pieces(tensors: Iterable[Tensor]) -> Iterator[ctypes.Array[ctypes.c_char]]:
    """The bytes of contiguous tensors, neighbours in one piece; the caller keeps them alive."""
    start = stop = 0
    for tensor in tensors:
        if tensor.data_ptr() != stop:
            if stop > start:
                yield (ctypes.c_char * (stop - start)).from_address(start)
            start = stop = tensor.data_ptr()
        stop += tensor.nbytes
    if stop > start:
        yield (ctypes.c_char * (stop - start)).from_address(start)

"""Writes safetensors files straight from tensors' memory, atomically, and opens those that were written.

The library's own writer copies every tensor into one byte string first; a model state of hundreds of megabytes should
not double for being saved. Reading is the library's, which calls every file missing that it cannot open.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
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
    """Writes `path` by way of a temporary neighbour; gives its size and checksum. As `write_stream`, with all tensors
    there at the beginning."""
    return write_stream(path, tensors, [tensors.values()], metadata, durable=durable)


def write_stream(
    path: Path,
    outlines: Mapping[str, Tensor],
    stream: Iterable[Iterable[Tensor]],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = True,
) -> FileSum:
    """Writes tensors as they come, some at a time, which may be gone before the next come. What `stream` gives are
    together, byte for byte, the tensors of `outlines` in its order; these need shapes and no numbers.

    The checksum is of what was in memory, computed by a second thread while this one writes, so it costs no time.

    Processes may die at any time; `durable` files survive the machine's loss of power as well. Tensors that lie one
    behind the other in memory are written in one piece, several times as fast.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in outlines.items():
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    # The format wants the data to begin at a multiple of eight bytes.
    head += b" " * (-len(head) % 8)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    crc32 = n_bytes = 0
    with contextlib.ExitStack() as undo:
        undo.callback(temporary.unlink, missing_ok=True)  # on a full disk, what each further try leaves would fill it
        with temporary.open("wb") as file, ThreadPoolExecutor(1) as summing:
            beginning: list[Piece] = [len(head).to_bytes(8, "little") + head]
            for piece in itertools.chain(beginning, _pieces(stream)):
                summed = summing.submit(zlib.crc32, piece, crc32)
                try:
                    file.write(piece)
                finally:
                    crc32 = summed.result()  # it reads memory that is let go of where the stream ends or goes on
                n_bytes += len(piece)
            if durable:
                file.flush()
                sync_open(file.fileno(), temporary)
        assert n_bytes == 8 + len(head) + offset, (n_bytes, offset)
        # The file gets its name only when it is complete, so a reader never sees a part of it.
        temporary.replace(path)
    return FileSum(n_bytes, crc32_text(crc32))


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


def _pieces(stream: Iterable[Iterable[Tensor]]) -> Iterator[Piece]:
    """The bytes of tensors, neighbours in one piece, which must be used before the next is asked for."""
    for tensors in stream:
        yield from _neighbours(tensors)
        del tensors  # or they would still be there while the next are made


def _neighbours(tensors: Iterable[Tensor]) -> Iterator[Piece]:
    held: list[Tensor] = []  # what the next piece is made of
    for tensor in tensors:
        if not tensor.nbytes:
            # It has no address, and zlib's sum of what has none begins anew.
            continue
        lies_here = tensor.is_contiguous() and tensor.device.type == "cpu"
        if held and not (lies_here and tensor.data_ptr() == held[-1].data_ptr() + held[-1].nbytes):
            yield _bytes_of(held)
            held = []
        # A copy is made when its turn has come, and gone before the next.
        held.append(tensor if lies_here else tensor.detach().cpu().contiguous())
    if held:
        yield _bytes_of(held)


def _bytes_of(neighbours: Sequence[Tensor]) -> Piece:
    return (ctypes.c_char * sum(tensor.nbytes for tensor in neighbours)).from_address(neighbours[0].data_ptr())

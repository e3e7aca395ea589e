"""Checksums of files at rest, so that a damaged file never passes for a good one.

Beside the files that a save has written lies `checksums.json`, which says of each how long it is and its CRC-32. Files
without such a list (of another tool, or saved before there were lists) are taken as they are. A file that cannot be
read just now is not a damaged one: that is `OutOfService`, not `Gone`. Knows no tensors.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from loreloop.protocol.errors import FilesGone, LoreloopError, reading_trouble

SUMS_FILE = "checksums.json"
PIECE_BYTES = 1 << 20
OPTIMIZER_FILE = "optimizer.safetensors"  # of training checkpoints, which may be loaded without it


class FileSum(msgspec.Struct, frozen=True):
    """Length and CRC-32 (eight hexadecimal digits) of a file."""

    n_bytes: int
    crc32: str


class FolderSum(msgspec.Struct, frozen=True):
    """Length of all files of a folder together, and the CRC-32 of their list."""

    n_bytes: int
    crc32: str


SUMS_DECODER = msgspec.json.Decoder(dict[str, FileSum])


def crc32_text(value: int) -> str:
    """A CRC-32 as the eight hexadecimal digits that lists and rows hold."""
    return f"{value:08x}"


def sum_of_bytes(content: bytes) -> FileSum:
    """Length and checksum of content that is in memory; `sum_of` gives the same of a file."""
    return FileSum(len(content), crc32_text(zlib.crc32(content)))


def sum_of(path: Path) -> FileSum:
    """Reads the whole file; OSError where that cannot be done."""
    n_bytes = crc32 = 0
    with path.open("rb") as file:  # not mapped into memory: a disk that fails then ends the process without an error
        while piece := file.read(PIECE_BYTES):
            n_bytes, crc32 = n_bytes + len(piece), zlib.crc32(piece, crc32)
    return FileSum(n_bytes, crc32_text(crc32))


def write_sums(folder: Path, sums: Mapping[str, FileSum]) -> str:
    """Writes the list beside the files it is of; gives the CRC-32 of the list itself."""
    content = msgspec.json.format(msgspec.json.encode(dict(sums)), indent=1)
    (folder / SUMS_FILE).write_bytes(content)
    return sum_of_bytes(content).crc32


def renew_sums(folder: Path) -> FolderSum:
    """Writes the list anew, of all files as they are now; it appears at once."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != SUMS_FILE)
    sums = {file.name: sum_of(file) for file in files}
    # On the same file system and moved as a whole: a reader sees the old list or the new one, never a half.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as staging:
        crc32 = write_sums(Path(staging), sums)
        (Path(staging) / SUMS_FILE).replace(folder / SUMS_FILE)
    return FolderSum(sum(each.n_bytes for each in sums.values()), crc32)


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Gone, naming the file, where one of these is not what the list beside it says, or is there and not on the list.
    A folder without a list is not looked at."""
    sums = read_sums(folder)
    for name in names:
        if name in sums:
            _check_file(folder / name, sums[name])
        elif sums and (folder / name).exists():
            raise FilesGone(f"{folder / name} is damaged, or {SUMS_FILE} is, which does not name it. {ADVICE}")


def check_all_files(folder: Path, but: Iterable[str] = ()) -> None:
    """Like `check_files`, for all that the list names but these."""
    check_files(folder, sorted(set(read_sums(folder)) - set(but)))


def is_same(folder: Path, other: Path) -> bool:
    """Whether another folder has the files of this one by their lists, and they are what its list says."""
    try:
        same = read_sums(other) == read_sums(folder) != {}
        if same:
            check_all_files(other)
    except LoreloopError:
        return False
    return same


def read_sums(folder: Path) -> dict[str, FileSum]:
    """The list of a folder, empty where it has none; Gone where there is one that says nothing."""
    file = folder / SUMS_FILE
    try:
        return SUMS_DECODER.decode(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        if trouble := reading_trouble(error, file):
            raise trouble from None
        raise FilesGone(f"{file} is damaged ({error}); nothing beside it is taken. {ADVICE}") from None


def _check_file(path: Path, written: FileSum) -> None:
    try:
        found = sum_of(path)
    except OSError as error:
        # A disk that is away for a moment must not make anybody give a good checkpoint up.
        if trouble := reading_trouble(error, path):
            raise trouble from None
        raise FilesGone(f"{path} cannot be read ({error.strerror or error}). {ADVICE}") from None
    # The length first, because it tells a file that was cut off from one with changed bytes.
    if found.n_bytes != written.n_bytes:
        raise FilesGone(
            f"{path} is damaged: it was written with {written.n_bytes} bytes and has {found.n_bytes}. {ADVICE}"
        )
    if found.crc32 != written.crc32:
        raise FilesGone(f"{path} is damaged: its checksum was {written.crc32} and is {found.crc32}. {ADVICE}")


ADVICE = (
    "Use another checkpoint, or bring these files back from a backup. Where they were changed on purpose, "
    "`loreloop checkpoints accept` notes a checkpoint's files as they are."
)

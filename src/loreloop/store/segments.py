"""Append-only files for large bodies: journal entries, results, spool records.

A record is its length, its CRC-32 and its bytes; a `Location` finds it again. A file is closed at 64 MiB and deleted
when nothing refers to it. A record torn by a crash lies at a file's end, where no row ever points.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import msgspec

from loreloop.protocol.errors import ServerError, reading_trouble
from loreloop.protocol.syncing import sync_names, sync_open, sync_path

HEADER = struct.Struct("<II")
SEGMENT_BYTES = 64 << 20


class Location(msgspec.Struct, frozen=True):
    """Where a record's header begins, and how many bytes its body has."""

    segment: int
    offset: int
    length: int


class Record(NamedTuple):
    """One record that was found by walking through a segment file."""

    path: Path
    location: Location
    body: bytes


def records(folder: Path, segment: int, offset: int) -> Iterator[Record]:
    """All whole records from a place on, for whoever has no row of them. The rest of a file is passed over where its
    records cannot be told apart."""
    for path in sorted(path for path in folder.glob("*.seg") if path.stem.isdecimal() and int(path.stem) >= segment):
        number = int(path.stem)
        with path.open("rb") as file:
            position = file.seek(offset if number == segment else 0)
            while len(head := file.read(HEADER.size)) == HEADER.size:
                length, crc32 = HEADER.unpack(head)
                # A length that reaches beyond the file is torn or damaged, and then no later header can be found.
                if length > path.stat().st_size - position - HEADER.size:
                    break
                body = file.read(length)
                if zlib.crc32(body) == crc32:
                    yield Record(path, Location(number, position, length), body)
                position += HEADER.size + length


class Segments:
    """The segment files of one folder, with one writer."""

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES, *, durable: bool = True) -> None:
        self.folder, self.segment_bytes, self.durable = folder, segment_bytes, durable
        self.is_synced = True
        folder.mkdir(parents=True, exist_ok=True)
        if durable:
            # A power cut that takes the folder's name takes every segment in it. Also where it was there: nobody knows
            # whether whoever made it came to its sync.
            sync_names(folder, 1)
        # Always a new file: behind a record that a crash tore, nothing is appended and nothing cut off.
        self.number = max(self.numbers(), default=0) + 1
        self.file = self._open(self.number)

    def numbers(self) -> list[int]:
        """The numbers of all segment files, the open one included, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.seg") if path.stem.isdecimal())

    def append(self, body: bytes) -> Location:
        """Hands the record to the operating system; it survives the death of this process from here on."""
        if self.file.tell() >= self.segment_bytes:
            self._roll()
        offset = self.file.tell()
        # Written by the operating system from here on; whoever commits a row of it syncs first.
        self.is_synced = False
        self._write(HEADER.pack(len(body), zlib.crc32(body)) + body, offset)
        return Location(self.number, offset, len(body))

    def _write(self, record: bytes, offset: int) -> None:
        left = memoryview(record)
        try:
            while left:  # a disk that is almost full takes a part
                left = left[self.file.write(left) :]
        except OSError:
            # Half a record would keep those behind it from being found. The next one goes to its place in any case.
            self.file.seek(offset)
            with contextlib.suppress(OSError):
                self.file.truncate()
            raise

    def _roll(self) -> None:
        """Goes on in a new file; where none can be made, the old one stays open for the next try."""
        self.sync()  # nobody could, once it is closed
        new = self._open(self.number + 1)
        old, self.number, self.file = self.file, self.number + 1, new
        old.close()

    def sync(self) -> None:
        """Makes all that was appended survive a power cut; ends the process where the disk refuses."""
        if self.durable and not self.is_synced:
            sync_open(self.file.fileno(), self._path(self.number))
            self.is_synced = True

    def read(self, location: Location) -> bytes:
        """The bytes of a record; ServerError where the file is gone or no longer holds what was written, OutOfService
        where it cannot be read just now."""
        # Opened anew for each read, so that any thread may read while the writer appends.
        path = self._path(location.segment)
        try:
            with path.open("rb") as file:
                file.seek(location.offset)
                record = file.read(HEADER.size + location.length)
        except OSError as error:
            raise reading_trouble(error, path) or ServerError(f"Segment {location.segment} is gone: {error}.") from None
        body = record[HEADER.size :]
        if (
            len(record) < HEADER.size
            or len(body) != location.length
            or HEADER.unpack(record[: HEADER.size]) != (location.length, zlib.crc32(body))
        ):
            raise ServerError(
                f"The record at {location.offset} of segment {location.segment} is damaged; restore a backup."
            )
        return body

    def sweep(self, used: Iterable[int]) -> list[int]:
        """Deletes closed segments that are not in `used`; gives their numbers."""
        # The open segment is spared even if nothing in it is used yet: its next record's row is still to come.
        spared = {self.number, *used}
        swept = [number for number in self.numbers() if number not in spared]
        for number in swept:
            self._path(number).unlink()
        return swept

    def close(self) -> None:
        """Closes the open segment; it must not be appended to afterwards."""
        self.file.close()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.seg"

    def _open(self, number: int) -> FileIO:
        # Without a buffer: on a full disk one would hold a record back, and write it when the file is closed.
        file = self._path(number).open("xb", buffering=0)
        try:
            if self.durable:
                sync_path(self.folder)  # the name of the file is kept by its folder
        except OSError:
            # The next try makes a file of the same name.
            file.close()
            self._path(number).unlink()
            raise
        return file

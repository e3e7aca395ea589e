"""Whether SQLite's write-ahead log has lost transactions: it takes a log up to the first page that is not as it was
written and forgets the rest without a word.

The log's format: https://www.sqlite.org/fileformat.html#the_write_ahead_log and https://www.sqlite.org/walformat.html.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

HEADER = struct.Struct(">8I")  # magic, format, page size, number, two salts, two checksums
FRAME = struct.Struct(">6I")  # page, pages of the database after a commit (else 0), two salts, two checksums
LAST_FRAME_AT = 16  # in the index beside the log: the number of frames that SQLite has taken


def lost_of_log(database: Path) -> str | None:
    """What a damaged log has cost, in words; None where nothing is known to be missing. To be asked while a connection
    is open that has read from the database, so that the index beside the log is of now.

    A log cut at its end cannot be told from one that a kill has cut.
    """
    log, index = (database.with_name(database.name + end) for end in ("-wal", "-shm"))
    if not log.exists() or log.stat().st_size <= HEADER.size or not index.exists():
        return None
    taken = int.from_bytes(index.read_bytes()[LAST_FRAME_AT : LAST_FRAME_AT + 4], sys.byteorder)
    commits = _commits(log)
    lost = [number for number in commits if number > taken]
    if not lost:
        return None
    return (
        f"{log} is damaged: {len(lost)} of the {len(commits)} transactions in it, the newest ones, cannot be read and "
        "are lost."
    )


def was_deleted(database: Path) -> bool:
    """An index without its log: both are made and deleted together."""
    log, index = (database.with_name(database.name + end) for end in ("-wal", "-shm"))
    return index.exists() and not log.exists()


def _commits(log: Path) -> list[int]:
    """The frames, counted from 1, that end a transaction of the log's present round; those of the round before, which
    are overwritten one by one, have other salts."""
    found: list[int] = []
    with log.open("rb") as file:
        header = file.read(HEADER.size)
        _, _, page_bytes, _, *salts, _, _ = HEADER.unpack(header)
        if not 512 <= page_bytes <= 65536:
            return []
        # Of a damaged header's round are the first frame's salts. A good one may stand before frames of the round
        # before alone, which are in the database already: a kill came between it and the first frame of its own.
        number, first_salts = 0, salts if _is_good(header) else None
        while len(head := file.read(FRAME.size)) == FRAME.size:
            number += 1
            _, size_after, *frame_salts, _, _ = FRAME.unpack(head)
            first_salts = first_salts or frame_salts
            if frame_salts in (salts, first_salts) and size_after:
                found.append(number)
            file.seek(page_bytes, 1)
    return found


def _is_good(header: bytes) -> bool:
    """Whether a log's header has the checksum that it says it has; the magic number's last bit is the order of bytes
    that checksums are made in."""
    magic, *_, first, second = HEADER.unpack(header)
    words = struct.unpack(">6I" if magic & 1 else "<6I", header[:24])
    sums = (0, 0)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        left = (sums[0] + even + sums[1]) % (1 << 32)
        sums = (left, (sums[1] + odd + left) % (1 << 32))
    return sums == (first, second)

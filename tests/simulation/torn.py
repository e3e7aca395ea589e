"""What a power cut leaves of a file whose last bytes were not synced. Pure."""

from __future__ import annotations

import random

SECTOR_BYTES = 512


def remains_of(before: bytes, now: bytes, chance: random.Random) -> bytes:
    """The bytes of a file that was synced as `before` and is `now`, after a power cut."""
    if before == now:
        return now
    match chance.choice(("nothing", "all", "torn", "reordered")):
        case "nothing":
            return before
        case "all":
            return now
        case "torn":
            return _torn(before, now, chance)
        case _:
            return _reordered(before, now, chance)


def _torn(before: bytes, now: bytes, chance: random.Random) -> bytes:
    """The changes up to some byte. Of a file that has grown the tail is cut off there."""
    first = next((at for at, (old, new) in enumerate(zip(before, now, strict=False)) if old != new), len(before))
    end = chance.randint(min(first, len(now)), len(now))
    return now[:end] + before[end:]


def _reordered(before: bytes, now: bytes, chance: random.Random) -> bytes:
    """Some sectors are new and others are not, whatever their order was; where nothing was, there are zeros."""
    size = chance.choice((len(before), len(now), len(now)))
    old, new = before.ljust(size, b"\0")[:size], now.ljust(size, b"\0")[:size]
    starts = range(0, size, SECTOR_BYTES)
    return b"".join((new if chance.random() < 0.5 else old)[at : at + SECTOR_BYTES] for at in starts)

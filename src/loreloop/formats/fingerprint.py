"""A checkpoint in one short word, so that hosts can see whether they hold the same one without reading it whole.

Covers the configuration, the names, sizes and headers of the weight files, and samples of their numbers. Two
checkpoints of one shape that differ everywhere, as fine-tunes do, differ in it; a single flipped bit need not
(`checksums.py` finds those).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from loreloop.formats.weight_files import weight_files
from loreloop.protocol.errors import BadRequest

N_SAMPLES, SAMPLE_BYTES = 64, 4096
HEAD_BYTES = 8  # the length of a safetensors header, least byte first
MOST_HEAD = 100 << 20  # as the format allows
SHOWN = 16  # hexadecimal digits


def fingerprint(folder: Path) -> str:
    """BadRequest where the folder holds no model."""
    found = hashlib.sha256()
    try:
        found.update((folder / "config.json").read_bytes())
        for file in weight_files(folder):
            found.update(f"{file.name} {file.stat().st_size}".encode())
            with file.open("rb") as opened:
                _take(opened, file.stat().st_size, found)
    except OSError as error:
        raise BadRequest(f"The model in {folder} cannot be read: {error.strerror}.") from None
    return found.hexdigest()[:SHOWN]


def _take(opened: BinaryIO, n_bytes: int, found: hashlib._Hash) -> None:
    n_head = int.from_bytes(opened.read(HEAD_BYTES), "little")
    found.update(opened.read(min(n_head, MOST_HEAD)))
    # Evenly over the file, its last bytes among them.
    for index in range(N_SAMPLES):
        opened.seek(max(0, n_bytes - SAMPLE_BYTES) * index // (N_SAMPLES - 1))
        found.update(opened.read(SAMPLE_BYTES))

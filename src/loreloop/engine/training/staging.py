"""Folders that appear whole, and that stay as they are where they are written a second time: somebody may read them.

A save is made again when the journal is replayed, while replicas still sample from what it has written before.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from loreloop.protocol.checksums import is_same

AT_WORKING_FOLDER, EXCHANGE = -100, 2  # of renameat2(2)


class staged:
    """A folder that appears under its name only when it is complete: `with staged(folder) as staging: …`. One that is
    there already with the same files is left alone, and any other gives way to it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.staging = folder, folder.with_name(f".{folder.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)
        return self.staging

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and not is_same(self.staging, self.folder):
                _replace(self.staging, self.folder)
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)


def _replace(new: Path, old: Path) -> None:
    """Gives a folder the name of another, which may be there and then has the first one's name."""
    if not old.exists():
        new.rename(old)
    elif not _exchanged(new, old):
        # Where the file system cannot do both at once, there is a moment without a folder, but never a half one.
        aside = old.with_name(f".{old.name}.{os.getpid()}.old")
        old.rename(aside)
        new.rename(old)
        aside.rename(new)


def _exchanged(new: Path, old: Path) -> bool:
    """Whether two folders have changed names, which Linux does in one step on most file systems."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):  # another system, or an older library
        return False
    return bool(rename(AT_WORKING_FOLDER, os.fsencode(new), AT_WORKING_FOLDER, os.fsencode(old), EXCHANGE) == 0)

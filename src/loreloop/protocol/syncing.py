"""What makes the disk keep something: files and folders, synced, so that a power cut takes nothing that was promised.

A sync that fails is never tried again: the system may have dropped the pages that it could not write and call the next
sync a success (https://wiki.postgresql.org/wiki/Fsync_Errors). So whoever meets one ends its process, the supervisor
ends the server, and the next start reads what the disk really holds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CANNOT_SYNC = 79  # exit code of a process whose disk has refused a sync


class SyncFailed(SystemExit):
    """Ends the process, as no `except Exception` may go on after it. It has said why already."""

    def __init__(self, what: str, error: OSError) -> None:
        super().__init__(CANNOT_SYNC)
        self.message = (
            f"{what} could not be synced to the disk: {error.strerror or error}. What was written is not certain to be "
            "kept, so the server stops and tries nothing again. Look at the disk, then start it: it goes on from what "
            "the disk has."
        )
        print(self.message, file=sys.stderr, flush=True)


def end_process() -> None:
    """At once, so that no answer goes out that the disk may not keep."""
    os._exit(CANNOT_SYNC)


def sync_open(descriptor: int, what: Path) -> None:
    """Syncs an open file; SyncFailed where the system cannot."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncFailed(str(what), error) from None


def sync_path(path: Path) -> None:
    """Syncs a file, or the names in a folder; SyncFailed where the system cannot."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_open(descriptor, path)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Syncs all files of a folder, then the folders from the innermost to the one itself."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in sorted(files):
            sync_path(Path(place, name))
        sync_path(Path(place))


def sync_names(path: Path, n_levels: int) -> None:
    """Syncs the folder that holds a name, and as many in all above it, of which some may be new as well."""
    for folder in list(path.absolute().parents)[:n_levels]:
        sync_path(folder)

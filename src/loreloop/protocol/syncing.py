"""What makes the disk keep something: files and folders, synced, so that a power cut takes nothing that was promised.

A sync that fails is never tried again: the system may have dropped the pages that it could not write and call the next
sync a success (https://wiki.postgresql.org/wiki/Fsync_Errors). So whoever meets one ends its process, the supervisor
ends the server, and the next start reads what the disk really holds.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
from pathlib import Path
from typing import Literal, NoReturn

LOG = logging.getLogger(__name__)
CANNOT_SYNC = 79  # exit code of a process whose disk has refused a sync
# What systems say of folders that they cannot sync at all, be it to `fsync` or to opening one. That is no failed write:
# such a file system keeps names in its own way.
NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EISDIR)
Durability = Literal["power", "os"]


class SyncFailed(SystemExit):
    """What the writer of a store meets where a test keeps its process from being ended."""


class _Promise:
    """What this process has promised of files and folders that it syncs by path; a process serves one data folder."""

    durability: Durability = "power"


def promise(durability: Durability) -> None:
    """Says for this process what shall survive; with `os` files and folders are left to the system. To be called once
    at its start, `power` else."""
    _Promise.durability = durability


def end_process() -> None:
    """At once, so that no answer goes out that the disk may not keep, and that nothing above can go on after it: a web
    server answers any exception, be it one that ends programs, and serves on."""
    os._exit(CANNOT_SYNC)


def refused_sync(what: str, error: OSError) -> NoReturn:
    """Says that the disk has refused a sync, and ends the process."""
    print(
        f"{what} could not be synced to the disk: {error.strerror or error}. What was written is not certain to be "
        "kept, so the server stops and tries nothing again. Look at the disk, then start it: it goes on from what "
        "the disk has.",
        file=sys.stderr,
        flush=True,
    )
    end_process()
    raise SyncFailed(CANNOT_SYNC)  # only where a test has replaced the end


def sync_open(descriptor: int, what: Path) -> None:
    """Syncs an open file, whatever was promised; ends the process where the system cannot."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        refused_sync(str(what), error)


def sync_path(path: Path) -> None:
    """Syncs a file, or the names in a folder, if that was promised; ends the process where the system cannot."""
    if _Promise.durability != "power":
        return
    if path.is_dir():
        _sync_folder(path)
        return
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


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
        _say_unsynced(error.strerror)
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            refused_sync(str(folder), error)
        _say_unsynced(error.strerror)
    finally:
        os.close(descriptor)


@functools.cache  # once is enough
def _say_unsynced(why: str) -> None:
    LOG.warning("the file system of the data folder syncs no folders (%s); names in them are kept as it sees fit", why)

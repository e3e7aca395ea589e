"""Folders and files of a server's data that only their owner may read, whatever the umask: they hold what users said.

One that exists keeps the mode that somebody has given it. Does not know what is put there.
"""

from __future__ import annotations

from pathlib import Path


def make_private(folder: Path) -> None:
    """Makes a folder with mode 0700, and those above it as others are made; OSError where that cannot be done."""
    # The mode of `mkdir` holds for the last folder alone; those above it follow the umask.
    folder.mkdir(0o700, parents=True, exist_ok=True)


def make_private_file(file: Path) -> None:
    """Makes an empty file with mode 0600 unless there is a file."""
    if not file.exists():
        file.touch(mode=0o600)

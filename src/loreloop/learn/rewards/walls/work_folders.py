"""Folders on disk for code that has no file system of its own in memory: made, measured, and removed whatever was done
to them.

A folder's name holds the process that made it, so that those which a killed one has left can be found.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

PREFIX = "loreloop-code"
MOST_FILES = 4096
_NAME = re.compile(rf"{PREFIX}-(\d+)-\w+")


def new(owner: int) -> Path:
    """An empty folder that the process `owner` answers for."""
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{owner}-"))


def n_bytes(folder: Path) -> float:
    """Of all files below; without end where there are too many to count, or a folder that cannot be looked into."""
    total, n_files, open_ = 0, 0, [os.fspath(folder)]
    while open_:
        try:
            with os.scandir(open_.pop()) as entries:
                for entry in entries:
                    n_files += 1
                    # Counting is itself work, of which hostile code must not be able to make any amount.
                    if n_files > MOST_FILES:
                        return math.inf
                    if entry.is_dir(follow_symlinks=False):
                        open_.append(entry.path)
                    with contextlib.suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue  # it has just been removed
        except OSError:
            return math.inf
    return total


def remove(folder: Path) -> None:
    """The folder with all below it, also where it is nested without end or may not be looked into."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, os.fspath(folder)], check=False, capture_output=True)


def sweep() -> None:
    """Removes what processes of this user have left that are no more."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):
        # Somebody else may have made a folder of a similar name in a place that all may write to.
        match = _NAME.fullmatch(path.name)
        with contextlib.suppress(OSError):
            if match and path.lstat().st_uid == os.geteuid() and not Path("/proc", match[1]).exists():
                remove(path)

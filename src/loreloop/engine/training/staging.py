"""Folders that appear whole, and that stay as they are where they are written a second time: somebody may read them.

A save is made again when the journal is replayed, while replicas still sample from what it has written before.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from pathlib import Path

from loreloop.protocol.checksums import is_same
from loreloop.protocol.syncing import sync_names, sync_tree

LEVELS = 4  # of folders above a checkpoint that may be new: <kind>, <run>, checkpoints, and the data folder
AT_WORKING_FOLDER, EXCHANGE = -100, 2  # of renameat2(2)


class staged:
    """A folder that appears under its name only when it is complete: `with staged(folder) as staging: …`. One that is
    there already with the same files is left alone, and any other gives way to it at once.

    A `durable` one is on the disk, name and contents, when the block has ended: whoever then writes its row may be sure
    of it.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.durable = durable
        self.folder, self.staging = folder, folder.with_name(f".{folder.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        self._clear()
        self.staging.mkdir(parents=True)
        return self.staging

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._appear()
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)

    def _clear(self) -> None:
        """Without what processes that died amid this have left: no other one writes this folder now."""
        for aside in self._left("old"):
            if not self.folder.exists():
                aside.rename(self.folder)
        for kind in ("old", "tmp"):
            for left in self._left(kind):
                shutil.rmtree(left, ignore_errors=True)

    def _left(self, kind: str) -> list[Path]:
        # By its whole name: the folder `a` has a neighbour `a.b`, and what is left of that is another's.
        name = re.compile(rf"\.{re.escape(self.folder.name)}\.\d+\.{kind}")
        return [left for left in self.folder.parent.glob(f".*.{kind}") if name.fullmatch(left.name)]

    def _appear(self) -> None:
        same = is_same(self.staging, self.folder)
        if self.durable:
            # Also what lies there already: nobody knows whether whoever wrote it came to its sync.
            sync_tree(self.folder if same else self.staging)
        if not same:
            _replace(self.staging, self.folder)
        if self.durable:
            sync_names(self.folder, LEVELS)


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

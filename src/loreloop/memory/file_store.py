"""Keeps memories as files in a folder, one each, replaced whole."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from loreloop.protocol.errors import BadRequest, Conflict
from loreloop.protocol.memories import Saved, first_revision, told_conflict

LONGEST_NAME = 200  # bytes; file systems take 255, and a suffix is added


class FileStore:
    """A save is written beside the old file, flushed to the disk and renamed over it: after a crash one of the two
    stands. A lock of the operating system lets one writer at a time compare revisions and rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, id: str) -> Saved | None:
        """The stored bytes and their revision, or None where there is no file. Raises BadRequest for a file without a
        revision in its first line, or an id that is too long."""
        path = self._path(id)
        if not path.exists():
            return None
        # One read gives both, so that a reader needs no lock: a rename cannot come between revision and data.
        revision, _, data = path.read_bytes().partition(b"\n")
        if not revision.isdigit():
            raise BadRequest(f"{path} is not a saved memory: its first line is no number. Restore it from a copy.")
        return Saved(data, int(revision))

    def save(self, id: str, data: bytes, after: int) -> Saved:
        """Stores `data` as the revision after `after`, on the disk when it returns. Raises Conflict where another
        revision is stored."""
        path = self._path(id)
        with self._locked(path):
            # The revision is read under the lock, or two writers could both find the one they go on from.
            stored = self.load(id)
            revision = 0 if stored is None else stored.revision
            if revision != after:
                raise Conflict(told_conflict(id, after, revision))
            saved = Saved(data, revision + 1 if revision else first_revision())
            beside = path.with_suffix(".new")
            with beside.open("wb") as file:
                file.write(b"%d\n" % saved.revision + data)
                file.flush()
                # Without this a crash could leave the new name with an empty file behind it.
                os.fsync(file.fileno())
            beside.replace(path)
            self._sync_folder()
        return saved

    def ids(self) -> list[str]:
        """Those of all stored memories, in the order of the alphabet."""
        return sorted(unquote(path.stem) for path in self.folder.glob("*.json"))

    def delete(self, id: str) -> None:
        """Removes the file of a memory, if there is one; the lock's file stays, since another process may wait on
        it."""
        path = self._path(id)
        with self._locked(path):
            path.unlink(missing_ok=True)
            path.with_suffix(".new").unlink(missing_ok=True)
            self._sync_folder()

    def _path(self, id: str) -> Path:
        # Quoted, an id can neither leave the folder nor meet another one.
        name = quote(id, safe="")
        if not name or len(name) > LONGEST_NAME:
            raise BadRequest(
                f"A memory's id has 1 to {LONGEST_NAME} bytes when written as in a URL; {id[:40]!r} does not."
            )
        # A dot is quoted too, since ".." and hidden names would pass otherwise.
        return self.folder / f"{name.replace('.', '%2E')}.json"

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        with path.with_suffix(".lock").open("w") as file:
            # The lock has a file of its own: the memory's own file is replaced, and a lock on it would go with it.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _sync_folder(self) -> None:
        """A rename is on the disk when the folder is."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

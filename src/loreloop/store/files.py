"""Where files lie in the data folder, and how unneeded ones go.

checkpoints/<run>/<kind>/<name>/      what users saved
revisions/<sampler>/                  adapters of ephemeral samplers
journal/*.seg, journal/snapshots/     what a restart needs
journal/pins/<request>/               checkpoints that a journaled load refers to, hard-linked
journal/secret                        what a replay needs and clients may not know
models/<name>/                        base models
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import uuid
from pathlib import Path

from loreloop.protocol.paths import CheckpointPath, file_name


class Files:
    """Paths below one data folder. Ids become folder names by way of `file_name`."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.checkpoints, self.revisions = data / "checkpoints", data / "revisions"
        self.snapshots, self.pins = data / "journal" / "snapshots", data / "journal" / "pins"

    def checkpoint(self, path: CheckpointPath) -> Path:
        return self._made(self.checkpoints / file_name(path.run_id) / path.kind.value) / path.name

    def revision(self, sampler_id: str) -> Path:
        return self._made(self.revisions) / file_name(sampler_id)

    def pin(self, folder: Path, request_id: str) -> Path:
        """A hard-linked copy of a folder, so that deleting the folder does not take it from a replay."""
        target = self._made(self.pins) / self.pin_name(request_id)
        if not target.exists():
            staging = target.with_name(f".{uuid.uuid4().hex}")
            shutil.copytree(folder, staging, copy_function=os.link)
            staging.rename(target)
        return target

    def pin_name(self, request_id: str) -> str:
        """What a request's pin is called in the folder of pins."""
        return file_name(request_id)

    def sweep(self, changed_before: float) -> None:
        """Finishes deletions, and drops copies, that a crash cut short."""
        folders = (self.revisions, self.pins, *self.checkpoints.glob("*/*"))
        for leftover in (path for folder in folders for path in folder.glob(".*")):
            if leftover.stat().st_ctime < changed_before:
                shutil.rmtree(leftover, ignore_errors=True)

    def _made(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def read_secret(file: Path) -> bytes:
    """32 random bytes that are the same for ever; whoever asks first makes them."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{uuid.uuid4().hex}")
        fresh.touch(mode=0o600)
        fresh.write_bytes(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            os.link(fresh, file)
        fresh.unlink()
    return file.read_bytes()


def delete(folder: Path) -> None:
    """Removes a folder at once for every reader, then its files."""
    doomed = folder.with_name(f".gone-{uuid.uuid4().hex}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed)

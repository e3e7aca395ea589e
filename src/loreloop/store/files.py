"""Where files lie in the data folder, and how unneeded ones go.

checkpoints/<run>/<kind>/<name>/      what users saved
revisions/<sampler>/                  adapters of ephemeral samplers
journal/*.seg, journal/snapshots/     what a restart needs
journal/pins/<request>/               checkpoints that a journaled load refers to, hard-linked
journal/secret                        what a replay needs and clients may not know
journal/lost/                         segments with operations that the database does not know; may be deleted by hand
files/<id>                            what clients uploaded, and results of jobs
models/<name>/                        base models

Rows hold these paths from the data folder on, because a data folder may be moved, or copied and used twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import uuid
from pathlib import Path

from sqlalchemy import Connection

from loreloop.protocol.checksums import is_same
from loreloop.protocol.errors import BadRequest, Conflict
from loreloop.protocol.paths import CheckpointKind, CheckpointPath, file_name
from loreloop.protocol.syncing import sync_names, sync_path

SECRET, SECRET_BYTES = Path("journal", "secret"), 32
LONGEST_NAME_INSIDE = 100  # bytes of a path: what is written into a folder while it is being made
# Where the paths lie that rows hold. The kinds are named, since a data folder may itself be called `checkpoints` or lie
# in a folder of that name; the shortest place comes last, since a model may be called `revisions`.
IN_ROWS = (
    *(f"checkpoints/*/{kind.value}/*" for kind in CheckpointKind),
    *("journal/snapshots/*/*", "journal/pins/*", "revisions/*", "files/*"),
)


class Files:
    """Paths below one data folder. Ids become folder names by way of `file_name`."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.checkpoints, self.revisions = data / "checkpoints", data / "revisions"
        self.snapshots, self.pins = data / "journal" / "snapshots", data / "journal" / "pins"
        self.lost = data / "journal" / "lost"
        self.uploads = data / "files"

    def checkpoint(self, path: CheckpointPath) -> Path:
        """Where a checkpoint is to lie; BadRequest where the system takes no path as long as that."""
        return self._place(self.checkpoints / file_name(path.run_id) / path.kind.value / path.name)

    def run(self, run_id: str) -> Path:
        """Where all checkpoints of a run lie."""
        return self.checkpoints / file_name(run_id)

    def revision(self, sampler_id: str) -> Path:
        """Where an ephemeral sampler's adapter is to lie; BadRequest as above."""
        return self._place(self.revisions / file_name(sampler_id))

    def upload(self, file_id: str) -> Path:
        """Where the body of an uploaded file is to lie, or does."""
        return self._place(self.uploads / file_name(file_id))

    def arriving_upload(self) -> Path:
        """A name for a body that is still coming in, which nobody reads and the sweeper knows."""
        # What clients send is for nobody else on this machine, wherever the data folder lies.
        self.uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._place(self.uploads / f".{uuid.uuid4().hex}")

    def put_upload(self, arriving: Path, file_id: str) -> None:
        """Gives a body that has come in whole its place. Body and name are on the disk in the end, because a row that
        survives a power cut must not name a body that did not."""
        target = self.upload(file_id)
        sync_path(arriving)
        arriving.rename(target)
        sync_names(target, 2)  # the folder of bodies may be new as well

    def pin(self, folder: Path, request_id: str, *, is_new: bool = False) -> Path:
        """A hard-linked copy of a folder, so that deleting the folder does not take it from a replay; one that is there
        stays. FileNotFoundError where there is no such folder; Conflict where the request is new, and what is there are
        other files."""
        target = self._place(self.pins / self.pin_name(request_id))
        made = copy_links(folder, target, 2)
        # An accepted operation keeps what it was accepted with, though its checkpoint was overwritten since. A new one
        # must never load what another request has left under its name.
        if is_new and not (made or has_same_files(folder, target)):
            raise Conflict(
                f"Files of another checkpoint are kept for {request_id} still, since a request of that id was broken "
                "off; load under another sequence id, or after a quarter of an hour."
            )
        return target

    def pin_name(self, request_id: str) -> str:
        """What a request's pin is called in the folder of pins."""
        return file_name(request_id)

    def sweep(self, changed_before: float) -> None:
        """Finishes deletions, and drops copies, that a crash cut short."""
        folders = (self.revisions, self.pins, self.uploads, *self.checkpoints.glob("*/*"), *self.snapshots.glob("*"))
        for leftover in (path for folder in folders for path in folder.glob(".*")):
            if leftover.stat().st_ctime < changed_before:
                destroy(leftover)

    def _place(self, folder: Path) -> Path:
        """The folder, with those above it made."""
        # Checked before an operation is accepted: found out while saving, it would fail after the training was done.
        longest = os.pathconf("/", "PC_PATH_MAX") - LONGEST_NAME_INSIDE
        if len(os.fsencode(folder.absolute())) > longest:
            raise BadRequest(
                f"The path of {folder.name} would be longer than this system takes ({longest} bytes); choose a shorter "
                "name, or serve from a data folder with a shorter path."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder


def copy_links(source: Path, target: Path, n_levels: int) -> bool:
    """A second folder of the same files, which appears at once and whole; False where there is a folder of that name
    already, and then that one stays. Its names are on the disk in the end, in as many folders above it as are named."""
    made = not target.exists() and _made_of_links(source, target)
    # Also of one that was there: nobody knows whether whoever made it came to its sync.
    sync_path(target)  # the files are on the disk already, and their new names come with it
    sync_names(target, n_levels)
    return made


def _made_of_links(source: Path, target: Path) -> bool:
    staging = target.with_name(f".{uuid.uuid4().hex}")
    try:
        _link_all(source, staging)
        sync_path(staging)
        staging.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):  # another request was faster
            return False
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return True


def _link_all(source: Path, target: Path) -> None:
    # File by file and not with `shutil.copytree`, which hides what the system says: that the disk is full, or that a
    # file is gone.
    target.mkdir()
    for path in source.iterdir():
        there = target / path.name
        if path.is_dir():
            _link_all(path, there)
            continue
        try:
            os.link(path, there)
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            # A file has only so many names (65,000 on ext4); behind them it takes room once more.
            shutil.copyfile(path, there)
            sync_path(there)
    shutil.copystat(source, target)


def is_linked(source: Path, target: Path) -> bool:
    """Whether two folders have the very same files; quicker than reading them, and also for those without checksums."""
    try:
        names = {file.name for file in source.iterdir()}
        return names == {file.name for file in target.iterdir()} and all(
            os.path.samefile(source / name, target / name) for name in names
        )
    except FileNotFoundError:  # one of them was deleted meanwhile
        return False


def has_same_files(source: Path, target: Path) -> bool:
    """Whether what lies in one folder is what lies in the other, be it linked or copied."""
    return is_linked(source, target) or is_same(source, target)


def read_secret(file: Path) -> bytes:
    """32 random bytes that are the same for ever; whoever asks first makes them. BadRequest where the file holds
    something else."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{uuid.uuid4().hex}")
        fresh.touch(mode=0o600)
        fresh.write_bytes(secrets.token_bytes(SECRET_BYTES))
        sync_path(fresh)
        # Of two processes that come at once the first link wins, and both read the same secret below.
        with contextlib.suppress(FileExistsError):
            os.link(fresh, file)
        fresh.unlink()
        sync_names(file, 1)
    try:
        found = file.read_bytes()
    except OSError as error:
        raise BadRequest(f"{file} cannot be read: {error.strerror}.") from None
    if len(found) != SECRET_BYTES:
        raise BadRequest(
            f"{file} is damaged: it holds {len(found)} bytes, not {SECRET_BYTES}. Delete it, and another one is made; "
            "results of operations on images that are replayed from the journal may then differ in the last bits."
        )
    return found


def delete(path: Path) -> None:
    """Removes a folder or a file at once for every reader, then what is in it."""
    if (doomed := set_aside(path)) is not None:
        destroy(doomed)


def set_aside(path: Path) -> Path | None:
    """Gives it a name that nobody reads and the sweeper knows; None where it is not there."""
    # A leading dot hides the folder from every listing, and marks it for the sweep after a crash.
    doomed = path.with_name(f".gone-{uuid.uuid4().hex}")
    try:
        return path.rename(doomed)
    except (FileNotFoundError, NotADirectoryError):
        return None


def destroy(path: Path) -> None:
    """Removes a folder with all in it, or a file. What cannot be removed is left for the next sweep."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def in_row(path: str) -> str:
    """A path below a data folder as a row holds it, whichever data folder it was written for; others as they are."""
    return str(_inside(path) or path)


def placed(connection: Connection, path: str) -> str:
    """Where a path of a row lies: below the data folder of the database that is asked."""
    inside = _inside(path)
    return str(Path(connection.engine.url.database or "").absolute().parent / inside) if inside else path


def _inside(path: str) -> Path | None:
    """The part of a path below a data folder."""
    found = Path(path)
    return next((Path(*found.parts[-place.count("/") - 1 :]) for place in IN_ROWS if found.match(place)), None)

"""Checkpoints between keys: made public, read by others, copied.

A copy is hard links, so that it takes no room; nobody ever writes into a file of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec
from sqlalchemy import Connection, select, update

from loreloop.protocol.checksums import SUMS_FILE, check_all_files, sum_of
from loreloop.protocol.errors import BadRequest, Conflict, FilesGone, NotFound
from loreloop.protocol.paths import CheckpointPath
from loreloop.store import checkpoints
from loreloop.store.files import copy_links, has_same_files, is_linked
from loreloop.store.rows import CheckpointRow
from loreloop.store.schema import CHECKPOINTS

LEVELS = 4  # of folders above a checkpoint that may be new: <kind>, <run>, checkpoints, and the data folder


def set_public(connection: Connection, key_id: str, path: CheckpointPath, *, public: bool) -> None:
    """Lets every key that knows the path read a checkpoint, or its owner alone again. To say it twice changes nothing,
    since the SDK repeats what it calls."""
    row = checkpoints.get(connection, key_id, path)
    of_path = (CHECKPOINTS.c.run_id == row.run_id) & (CHECKPOINTS.c.kind == row.kind.value)
    connection.execute(update(CHECKPOINTS).where(of_path, CHECKPOINTS.c.name == row.name).values(public=public))


def readable(connection: Connection, key_ids: Collection[str], path: CheckpointPath) -> CheckpointRow:
    """A checkpoint that one of the keys owns, or that is public. NotFound else, in the same words as where there is
    none."""
    try:
        row = checkpoints.of_anyone(connection, path)
    except NotFound:
        row = None
    if row is None or not (row.public or row.key_id in key_ids):
        raise NotFound(f"There is no checkpoint {path} of this key.")
    return row


def has_public(connection: Connection, run_id: str) -> bool:
    """Whether a run has a checkpoint that is public."""
    of_run = (CHECKPOINTS.c.run_id == run_id) & CHECKPOINTS.c.public
    return connection.execute(select(CHECKPOINTS.c.name).where(of_run).limit(1)).first() is not None


def link_files(source: Path, target: Path) -> bool:
    """A second folder of the same files, which appears at once; False where it is there already. BadRequest where
    another checkpoint is."""
    made = copy_links(source, target, LEVELS)
    if not (made or has_same_files(source, target)):
        raise BadRequest(f"There are files of another checkpoint in {target} already; copy to another model_seq_id.")
    return made


def is_copy(source: Path, copy: CheckpointRow) -> bool:
    """Whether the files of a copy are what its row is to say. They are not where its source was saved anew while it was
    linked: then they are of the later save, or of both."""
    target = Path(copy.folder)
    try:
        if copy.sums_crc32 and sum_of(target / SUMS_FILE).crc32 != copy.sums_crc32:
            return False
        # A save writes new files, so that the same ones are those that were checked; others are read once more.
        if is_linked(source, target):
            return True
        check_all_files(target)
    except (FileNotFoundError, FilesGone):
        return False
    return copy.sums_crc32 is not None  # of others without a list nothing tells what they are


def is_known(connection: Connection, copy: CheckpointRow) -> bool:
    """Whether there is this copy already. BadRequest where its run has a checkpoint of that name that is none."""
    try:
        known = checkpoints.of_anyone(connection, copy.path)
    except NotFound:
        return False
    same = msgspec.structs.replace(known, created=copy.created, expires=copy.expires, public=copy.public) == copy
    if not same:
        raise BadRequest(f"There is a checkpoint {copy.path} already; copy to another model_seq_id.")
    return True


def add_copy(connection: Connection, copy: CheckpointRow) -> None:
    """Makes a copy known, once. Conflict where its files are gone."""
    known = is_known(connection, copy)
    # On the writer's thread, where leftovers are taken as well: those of a copy that was deleted before may have been
    # found by this one, and been taken since. Once there is a row nothing takes them.
    if not Path(copy.folder).is_dir():
        raise changed_meanwhile(copy.path)
    if not known:
        checkpoints.add(connection, copy)


def changed_meanwhile(path: CheckpointPath) -> Conflict:
    """What whoever asked for a copy is told where its files are gone or are others."""
    return Conflict(f"The files of {path} changed or went away while they were copied; ask for the copy again.")

"""Versions of a reward in a folder: each in a folder of its own, whole or not there, with the older records kept.

    FOLDER/000012/version.json    the record, with a checksum of each file beside it
    FOLDER/000012/…               files, of the newest few versions only

Knows no kind of reward.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loreloop.learn.loop.reward.events import RewardVersion
from loreloop.protocol.errors import BadRequest

RECORD = "version.json"
KEPT = 3  # versions whose files stay


class _Record(msgspec.Struct, frozen=True):
    version: RewardVersion
    sums: dict[str, str]


@dataclass(frozen=True)
class Kept:
    """A version with its files, as they were saved."""

    version: RewardVersion
    files: Mapping[str, bytes]


def _nothing_beside(version: RewardVersion) -> None:
    """What goes before a version's files where all of it lies in its folder."""


def save_version(
    folder: Path,
    version: RewardVersion,
    files: Mapping[str, bytes],
    first: Callable[[RewardVersion], None] = _nothing_beside,
) -> None:
    """Writes a version. Whatever dies meanwhile, it is there whole or not at all; one that is there already stays as
    it is, since a version never changes. Of older ones nothing but the record is kept; `first` as for `drop_files`."""
    place = folder / f"{version.number:06d}"
    if (place / RECORD).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".new-{uuid.uuid4().hex}"
    new.mkdir()
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, data in [*files.items(), (RECORD, msgspec.json.format(msgspec.json.encode(_Record(version, sums))))]:
        with open(new / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    os.rename(new, place)
    _sync(folder)
    drop_files(folder, first=first)


def newest(folder: Path, kind: str) -> Kept | None:
    """The newest version whose files are whole; None where there is none. BadRequest where the folder holds versions
    of another kind of reward."""
    for record, place in reversed(_records(folder)):
        if record.version.kind != kind:
            raise BadRequest(
                f"{folder} holds versions of a {record.version.kind} reward, not of a {kind} one; name another folder."
            )
        if (files := _whole(place, record.sums)) is not None:
            return Kept(record.version, files)
    return None


def versions(folder: Path) -> list[RewardVersion]:
    """The records of all versions that a folder has ever held, the oldest first."""
    return [record.version for record, _ in _records(folder)]


def drop_files(folder: Path, kept: int = KEPT, first: Callable[[RewardVersion], None] = _nothing_beside) -> None:
    """Removes what a death has left behind, and the files of all but the newest `kept` versions; the records stay.
    `first` deletes what a version has elsewhere, while its files still say that it is there: after a death in between
    it is asked again."""
    for left in folder.glob(".new-*"):
        shutil.rmtree(left, ignore_errors=True)
    for record, place in _records(folder)[:-kept]:
        files = [place / name for name in record.sums if (place / name).exists()]
        if files:
            first(record.version)
        for file in files:
            file.unlink()


def _records(folder: Path) -> list[tuple[_Record, Path]]:
    found = []
    for place in sorted(folder.glob("[0-9]*")):
        # A record that cannot be read is no version; the one before it is.
        with contextlib.suppress(OSError, msgspec.DecodeError):
            found.append((msgspec.json.decode((place / RECORD).read_bytes(), type=_Record), place))
    return found


def _whole(place: Path, sums: Mapping[str, str]) -> dict[str, bytes] | None:
    try:
        files = {name: (place / name).read_bytes() for name in sums}
    except OSError:
        return None
    whole = all(hashlib.sha256(data).hexdigest() == sums[name] for name, data in files.items())
    return files if whole else None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

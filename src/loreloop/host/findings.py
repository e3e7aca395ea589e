"""What is well and what is not about a data folder and its machine: looked at, and nothing changed.

Each thing is a finding of its own, so that one trouble hides no other. Knows the folder, its disk, its lock, its port
and its clock; what needs more than this room is looked at by whoever asks.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from loreloop.config import Config
from loreloop.host.address import check_address
from loreloop.host.place import PROBE_BYTES
from loreloop.host.server_plan import Address
from loreloop.protocol.errors import LoreloopError
from loreloop.protocol.syncing import NO_FOLDER_SYNC

State = Literal["ok", "warning", "wrong"]
LITTLE_ROOM_BYTES = 2 << 30  # a few checkpoints of a larger model
SLOW_SYNC_SECONDS = 0.05  # each acknowledged operation waits for one
FEW_FILES = 4096  # that a process may hold open; two thousand clients may come at once
BACKWARDS_SECONDS = 60.0  # by which a file may be newer than the clock: other machines' clocks differ a little
RELEASED = 1_764_547_200.0  # seconds since the epoch, of December 2025: no clock of this version shows less
IN_MEMORY = ("tmpfs", "ramfs")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at, what was found, and what to do about it where it is not well."""

    what: str
    state: State
    found: str
    advice: str = ""
    figures: dict[str, float | None] = {}  # for programs, in the units of their names


def folder_findings(config: Config) -> Iterator[Finding]:
    """The data folder: whose it is, who may read it, its disk, and what its files say of the clock."""
    folder = config.data_path.absolute()
    yield from _rights(folder)
    yield _room(folder)
    if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
        yield _syncs(folder, config)
    yield _clock(folder)


def machine_findings() -> Iterator[Finding]:
    """What the system allows a process."""
    n_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = n_files != resource.RLIM_INFINITY and n_files < FEW_FILES
    advice = f"raise the limit before the start: ulimit -n {FEW_FILES}" if few else ""
    shown = "any number of" if n_files == resource.RLIM_INFINITY else f"{n_files:,}"
    yield Finding("open files", "warning" if few else "ok", f"a process may hold {shown} files open", advice)


def port_finding(config: Config) -> Finding:
    """Whether a server could listen where the settings say; to be asked where none of ours does."""
    try:
        check_address(config.host, config.port)
    except LoreloopError as error:
        return Finding("port", "wrong", error.message, "give `loreloop serve` another --port or --host")
    where = f"{config.host}:{config.port}" if config.port else f"a free port of {config.host}"
    return Finding("port", "ok", f"{where} can be listened on")


def server_finding(config: Config, address: Address | None, *, answers: bool) -> Finding:
    """Whether a server has the data folder. `address` is what its file says, `answers` whether it is heard there."""
    locked = is_locked(config.data_path / "run" / "lock")
    if address is None:
        if locked:
            advice = "wait a moment; if it stays, look which process holds run/lock"
            return Finding("server", "warning", "a server is starting on this folder, or hangs", advice)
        return Finding("server", "ok", "none runs on this folder")
    if answers:
        return Finding("server", "ok", f"one runs at {address.url} (pid {address.pid})")
    if locked:
        advice = f"look into {config.log_path}, and start it anew"
        return Finding("server", "wrong", f"the one at {address.url} (pid {address.pid}) does not answer", advice)
    found = f"one was killed at {address.url}; another process has its number now"
    return Finding("server", "warning", found, "nothing: the next start puts it right")


def is_locked(lock: Path) -> bool:
    """Whether a process holds the lock of a data folder. The system is asked, and the lock is not tried: a server that
    starts in that moment would be refused."""
    try:
        number = str(lock.stat().st_ino)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    places = (line.split()[5] for line in lines if "FLOCK" in line and len(line.split()) > 5)
    return any(place.rpartition(":")[2] == number for place in places)


def _rights(folder: Path) -> Iterator[Finding]:
    # Of a folder that this user may not look into the system says that it is not there.
    if not os.path.exists(folder):
        above = next(parent for parent in folder.parents if os.path.exists(parent))
        if os.access(above, os.W_OK | os.X_OK):
            yield Finding("data folder", "ok", f"{folder} is not there yet; `loreloop serve` makes it")
        else:
            found = f"{folder} is not there for this user, who cannot write to {above}"
            yield Finding("data folder", "wrong", found, "name another --data, or change the rights")
        return
    if not folder.is_dir():
        yield Finding("data folder", "wrong", f"{folder} is no folder", "name another --data")
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        advice = "run as its owner, or name another --data"
        yield Finding("data folder", "wrong", f"{folder} cannot be read and written by this user", advice)
    else:
        yield Finding("data folder", "ok", str(folder))
    about = folder.stat()
    if about.st_uid != os.geteuid():
        advice = "run as its owner: files of two users in one folder cannot be read by either"
        yield Finding("owner", "warning", f"the folder is of user {about.st_uid}, and this is {os.geteuid()}", advice)
    if about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        found = f"others may look into the folder (mode {stat.S_IMODE(about.st_mode):04o})"
        yield Finding("rights", "warning", found, f"chmod 700 {folder}, unless others are meant to read it")


def _room(folder: Path) -> Finding:
    place = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    n_free = shutil.disk_usage(place).free
    state: State = "wrong" if n_free < PROBE_BYTES else "warning" if n_free < LITTLE_ROOM_BYTES else "ok"
    advice = "" if state == "ok" else "make room: `loreloop checkpoints list` shows the sizes of checkpoints"
    return Finding("disk", state, f"{n_free / 1e9:.1f} GB are free there", advice)


def _syncs(folder: Path, config: Config) -> Finding:
    """Writes a file of some bytes, syncs it and its folder, and deletes it."""
    probe = folder / f".doctor-{os.getpid()}"
    started = time.perf_counter()
    try:
        with probe.open("wb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - started
        folder_trouble = _sync_trouble(folder)
    except OSError as error:
        advice = "look at the disk, or move the data"
        return Finding("sync", "wrong", f"the disk refuses a sync: {error.strerror}", advice)
    finally:
        probe.unlink(missing_ok=True)
    kind = file_system_of(folder)
    if kind in IN_MEMORY:
        return Finding("sync", "warning", f"the folder lies in memory ({kind})", "name a --data on a disk to keep it")
    if folder_trouble:
        found = f"the file system ({kind}) syncs no folders: {folder_trouble}"
        return Finding("sync", "warning", found, "after a power cut names may be missing; use a local disk")
    found = f"a sync takes {1000 * seconds:.1f} ms ({kind}); durability is {config.durability!r}"
    if seconds > SLOW_SYNC_SECONDS and config.durability == "power":
        return Finding("sync", "warning", found, 'a faster disk, or durability "os" if a power cut may cost moments')
    return Finding("sync", "ok", found)


def _sync_trouble(folder: Path) -> str:
    """Why a folder's names cannot be synced; empty where they are. OSError where the disk refuses."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
        return error.strerror or str(error.errno)
    return ""


def file_system_of(folder: Path) -> str:
    """The kind of file system that a folder lies on, as the system calls it; empty where it does not say."""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    place, best, kind = folder.resolve(), -1, ""
    for line in lines:
        _, mounted, found, *_ = line.split()
        # Spaces of a path are written as octal numbers there.
        at = Path(mounted.replace("\\040", " "))
        # Of several on one place the last one is seen, since it lies over the others.
        if place.is_relative_to(at) and len(at.parts) >= best:
            best, kind = len(at.parts), found
    return kind


def _clock(folder: Path) -> Finding:
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < RELEASED:
        return Finding("clock", "wrong", f"it shows {shown}, before this version was made", "set it, such as by NTP")
    names = ("loreloop.db", "loreloop.db-wal", "loreloop.log", "journal", "checkpoints")
    files = [folder / name for name in names] if os.access(folder, os.X_OK) else []
    newest = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    if newest > now + BACKWARDS_SECONDS:
        found = f"it shows {shown}, {newest - now:.0f} s before the newest file of the data folder"
        return Finding("clock", "warning", found, "set it: sessions and checkpoints expire by it")
    return Finding("clock", "ok", shown)

"""A disk that keeps exactly what was synced, and of the rest what chance leaves of it when the power goes.

The files lie in a real folder; what a sync has made certain is held beside it: the bytes of each file and the names in
each folder, as of its last sync. A power cut makes a new folder of both: every changed file has its old bytes, the new
ones, those up to some place (a torn tail), or some sectors of each (a reordered one), and every changed name is there
or is not. Names that a rename has exchanged change together, as in file systems with a journal.

It stands where the system stands: under `os.fsync`, under `open` for files of its folder, and under SQLite
(`tests/simulation/sqlite_files.py`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from loreloop.protocol import syncing
from tests.simulation.torn import remains_of

Kind = Literal["full", "io_error", "short", "failed_sync", "unreadable", "kill", "power"]
Tree = dict[str, "bytes | Tree"]
OF_WRITES: tuple[Kind, ...] = ("full", "io_error", "short")


class Killed(BaseException):
    """Not an `Exception`: nothing in a process may survive it."""


class Process:
    """Whoever reads and writes. A dead one changes nothing any more."""

    def __init__(self, name: str, *, is_dead: bool = False) -> None:
        self.name, self.is_dead = name, is_dead


@dataclass
class Fault:
    """What goes wrong at the `number`-th access that it is about, counted from 1; only those of one process are counted
    where one is named."""

    kind: Kind
    number: int
    of: Process | None = None

    def is_about(self, access: str, process: Process) -> bool:
        if self.of not in (None, process):
            return False
        match self.kind:
            case "failed_sync":
                return access == "sync"
            case "unreadable":
                return access == "read"
            case "kill" | "power":
                return access in ("write", "sync")
        return access == "write"


class Disk:
    """`running` is the process that has the turn. `image` is what a power cut has left, once there was one."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.root, self.chance = root, chance
        self.running = self.outside = Process("outside")
        self.faults: list[Fault] = []
        self.is_full = False
        self.n_accesses = 0
        self.struck: list[Kind] = []
        self.image: Tree | None = None
        self.all_processes: list[Process] = []
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._held: dict[int, int] = {}
        self._aside = root.with_name(f"{root.name}.aside")
        self.keep_all()

    # what is certain

    def keep_all(self) -> None:
        """All that is there is synced."""
        self._let_go()
        for place, _, files in os.walk(self.root):
            for name in files:
                self._keep_file(Path(place, name))
            self._keep_names(Path(place))

    def _let_go(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)
        self._bytes, self._names, self._held = {}, {}, {}

    def close(self) -> None:
        """Lets go of all files."""
        self._let_go()

    def _keep_file(self, path: Path) -> None:
        self._bytes[self._hold(path)] = _content(path)

    def _keep_names(self, path: Path) -> None:
        self._names[self._hold(path)] = {name: self._hold(path / name) for name in _names_in(path)}

    def _hold(self, path: Path) -> int:
        """The number of a file or folder; held open, so that no other one gets its number."""
        number = path.stat().st_ino
        if number not in self._held:
            self._held[number] = os.open(path, os.O_RDONLY)
        return number

    # what happens

    def new_process(self, process: Process) -> Process:
        """One that dies when the power goes."""
        self.all_processes = [each for each in self.all_processes if not each.is_dead]
        self.all_processes.append(process)
        return process

    def sync(self, path: Path) -> None:
        """Makes a file, or the names in a folder, certain; OSError where it is to fail."""
        self._access("sync", None)
        if self.running.is_dead:
            return
        if path.is_dir():
            self._keep_names(path)
        else:
            self._keep_file(path)

    def write(self, n_bytes: int, put: Callable[[int], int]) -> int:
        """Has so many bytes written by `put`, which may be asked for fewer; OSError where it is to fail."""
        self._access("write", lambda: put(self.chance.randrange(n_bytes)) if n_bytes else 0)
        return n_bytes if self.running.is_dead else put(n_bytes)

    def read(self) -> None:
        """Somebody opens a file to read it; OSError where it is to fail."""
        self._access("read", None)

    def _access(self, access: str, put_some: Callable[[], int] | None) -> None:
        process = self.running
        if process is self.outside or process.is_dead:
            return
        self.n_accesses += access != "read"
        for fault in [fault for fault in self.faults if fault.is_about(access, process)]:
            fault.number -= 1
            if fault.number == 0:
                self.faults.remove(fault)
                self._strike(fault.kind, process, put_some)
        if access == "write" and self.is_full and not process.is_dead:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _strike(self, kind: Kind, process: Process, put_some: Callable[[], int] | None) -> None:
        self.struck.append(kind)
        if kind in ("short", "kill", "power") and put_some:
            put_some()
        match kind:
            case "full" | "short":
                self.is_full = True
            case "kill":
                self.die(process)
            case "power":
                self.cut_power()
                self.die(process)
            case _:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def die(self, process: Process) -> None:
        """A process ends amid what it does: nothing of what its code still goes through reaches the disk."""
        process.is_dead = True
        self.dies_here(process)

    def dies_here(self, process: Process) -> None:
        """Ends the stack of a process that can be ended by an exception; the others are ended by the world."""
        if process.name == "engine":
            self.take_out_of_reach()
            raise Killed

    def take_out_of_reach(self) -> None:
        """Moves the folder away while a killed process ends, so that its handlers tidy nothing up."""
        if not self._aside.exists():
            self.root.rename(self._aside)

    def reach_again(self) -> None:
        """Moves it back."""
        if self._aside.exists():
            self._aside.rename(self.root)

    # power

    def cut_power(self) -> None:
        """Every process is dead; `image` is what the disk has."""
        if self.image is None:
            self.image = self._left_of(self.root.stat().st_ino, self.root)
        for process in self.all_processes:
            process.is_dead = True

    def put_image(self) -> None:
        """The folder is what the power cut has left; all processes must have ended."""
        assert self.image is not None
        shutil.rmtree(self.root)
        _write_tree(self.root, self.image)
        self.image = None
        self.keep_all()

    def _left_of(self, number: int, path: Path | None) -> Tree:
        """What is left of a folder. One that has no path any more has its synced names alone."""
        now = {name: (path / name).stat().st_ino for name in _names_in(path)} if path else {}
        before = self._names.get(number, {})
        names = _some_changes(before, now, self.chance)
        here = {inode: path / name for name, inode in now.items()} if path else {}
        return {name: self._left(names[name], here.get(names[name])) for name in sorted(names)}

    def _left(self, number: int, path: Path | None) -> bytes | Tree:
        where = path or Path(f"/proc/self/fd/{self._held[number]}")
        if where.is_dir():
            return self._left_of(number, where if where.resolve().exists() else None)
        return remains_of(self._bytes.get(number, b""), _content(where), self.chance)

    # under the system's calls

    @contextlib.contextmanager
    def under_the_system(self) -> Iterator[None]:
        """Takes the place of the system for files of this folder, as long as the block lasts."""
        real_open, real_sync = io.open, os.fsync

        def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **named: Any) -> Any:
            if not isinstance(file, str | os.PathLike) or not self.is_mine(os.fspath(file)):
                return real_open(file, mode, buffering, *args, **named)
            if not set(mode) & set("wxa+"):
                self.read()
                return real_open(file, mode, buffering, *args, **named)
            raw = SimulatedFile(self, os.fspath(file), mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, "utf-8")

        def synced(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if self.is_mine(path):
                self.sync(Path(path))
            else:
                real_sync(descriptor)

        before = syncing._Promise.durability
        syncing.promise("power")
        # The process must not end with the simulated one: `refused_sync` raises SyncFailed then.
        with (
            mock.patch.object(io, "open", opened),
            mock.patch.object(os, "fsync", synced),
            mock.patch.object(syncing, "end_process"),
        ):
            try:
                yield
            finally:
                syncing.promise(before)

    def is_mine(self, path: str | bytes) -> bool:
        """Whether a file lies on this disk."""
        return isinstance(path, str) and (path == str(self.root) or path.startswith(f"{self.root}/"))


class SimulatedFile(io.FileIO):
    """A file that is written to, of the disk's folder."""

    def __init__(self, disk: Disk, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self.disk = disk

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        put = super().write
        return self.disk.write(len(view), lambda n_bytes: put(view[:n_bytes]) or 0)


def _content(path: Path) -> bytes:
    with open(path, "rb") as file:  # not by `Path.open`, which is the simulated one
        return file.read()


def _names_in(folder: Path) -> list[str]:
    # The index beside SQLite's log holds nothing that a restart needs, and is made anew by the first who opens it.
    return sorted(name for name in os.listdir(folder) if not name.endswith("-shm"))


def _some_changes(before: dict[str, int], now: dict[str, int], chance: random.Random) -> dict[str, int]:
    """The names of a folder after a power cut. Those that share a file, before and now, change together."""
    left: dict[str, int] = {}
    todo = sorted(before.keys() | now.keys())
    while todo:
        together, grown = {todo[0]}, True
        while grown:
            files = {names[name] for names in (before, now) for name in together if name in names}
            more = {name for name in todo if {before.get(name), now.get(name)} & files}
            grown, together = more != together, more
        source = now if chance.random() < 0.5 else before
        left |= {name: source[name] for name in sorted(together) if name in source}
        todo = [name for name in todo if name not in together]
    return left


def _write_tree(folder: Path, tree: Tree) -> None:
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            _write_tree(folder / name, content)

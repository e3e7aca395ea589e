"""SQLite on a simulated disk: a layer between SQLite and the files of its own that tells the disk of every write and
sync, and fails where the disk fails.

SQLite reaches files through a table of functions, its VFS (https://www.sqlite.org/vfs.html). Here is a copy of the
default table whose files have some functions of ours; all others are SQLite's. It serves the whole Python process, and
passes everything through while no disk is set.
"""

from __future__ import annotations

import _sqlite3
import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path

from tests.simulation.disk import Disk

OK, FULL = 0, 13
IOERR_WRITE, IOERR_FSYNC, IOERR_TRUNCATE = (10 | number << 8 for number in (3, 4, 6))
OPEN_CREATE, OPEN_JOURNALS = 0x4, 0x800 | 0x4000 | 0x80000  # journals and logs: SQLite syncs their names too

Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
Delete = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
Randomness = CFUNCTYPE(c_int, c_void_p, c_int, c_void_p)
Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
Sync = CFUNCTYPE(c_int, c_void_p, c_int)


class Vfs(ctypes.Structure):
    _fields_ = [
        ("version", c_int),
        ("file_bytes", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        *((name, c_void_p) for name in ("open", "delete", "access", "full_path")),
        *((name, c_void_p) for name in ("dl_open", "dl_error", "dl_sym", "dl_close")),
        *((name, c_void_p) for name in ("randomness", "sleep", "current_time", "last_error", "current_time_int64")),
        *((name, c_void_p) for name in ("set_system_call", "get_system_call", "next_system_call")),
    ]


class Methods(ctypes.Structure):
    _fields_ = [
        ("version", c_int),
        *((name, c_void_p) for name in ("close", "read", "write", "truncate", "sync", "file_size")),
        *((name, c_void_p) for name in ("lock", "unlock", "check_reserved_lock", "file_control")),
        *((name, c_void_p) for name in ("sector_size", "device_characteristics")),
        *((name, c_void_p) for name in ("shm_map", "shm_lock", "shm_barrier", "shm_unmap", "fetch", "unfetch")),
    ]


class File(ctypes.Structure):
    _fields_ = [("methods", POINTER(Methods))]


class Real:
    """The functions of one kind of SQLite's own files."""

    def __init__(self, methods: Methods) -> None:
        self.write, self.truncate, self.sync = Write(methods.write), Truncate(methods.truncate), Sync(methods.sync)


class SimulatedVfs:
    """The layer. One for the Python process, since SQLite keeps pointers to it."""

    def __init__(self) -> None:
        self.library = library()
        self.library.sqlite3_vfs_find.restype = c_void_p
        self.library.sqlite3_vfs_find.argtypes = [c_char_p]
        for function in (self.library.sqlite3_vfs_register, self.library.sqlite3_vfs_unregister):
            function.argtypes = [c_void_p, c_int][: 2 if function is self.library.sqlite3_vfs_register else 1]
        self.real_address = self.library.sqlite3_vfs_find(None)
        self.real = Vfs.from_address(self.real_address)
        self.real_open, self.real_delete = Open(self.real.open), Delete(self.real.delete)
        self.real_randomness = Randomness(self.real.randomness)
        self.disk: Disk | None = None
        self.opened: dict[int, tuple[Path, Real]] = {}  # by the address of SQLite's file
        self.unnamed: set[int] = set()  # whose names are synced with their first sync
        self.tables: dict[int, tuple[Methods, Real]] = {}  # by the address of SQLite's own table
        self.errors: list[BaseException] = []  # of ours: an exception cannot pass through SQLite
        self.functions = (Open(self.open), Delete(self.delete), Randomness(self.randomness))
        self.file_functions = (Write(self.write), Truncate(self.truncate), Sync(self.sync))
        self.own = Vfs()
        ctypes.memmove(ctypes.addressof(self.own), self.real_address, ctypes.sizeof(Vfs))
        self.own.name, self.own.next = b"simulated", None
        self.own.open, self.own.delete, self.own.randomness = (ctypes.cast(each, c_void_p) for each in self.functions)

    @contextlib.contextmanager
    def on(self, disk: Disk) -> Iterator[None]:
        """Has all connections that are made in the block work on a disk."""
        self.disk = disk
        self.library.sqlite3_vfs_register(ctypes.addressof(self.own), 1)
        self.library.sqlite3_randomness(0, None)  # from here on by the seed
        try:
            yield
        finally:
            self.library.sqlite3_vfs_register(self.real_address, 1)
            self.library.sqlite3_vfs_unregister(ctypes.addressof(self.own))
            self.library.sqlite3_randomness(0, None)
            self.disk = None

    # called by SQLite

    def open(self, vfs: int, name: int | None, file: int, flags: int, flags_out: int | None) -> int:
        # The name goes on as the address that it came with: SQLite keeps it, and reads more of what lies around it.
        code = self.real_open(vfs, name, file, flags, flags_out)
        self.opened.pop(file, None)
        self.unnamed.discard(file)
        if code == OK and name and self.disk is not None and self.disk.is_mine(_path(name)):
            at = File.from_address(file)
            address = ctypes.addressof(at.methods.contents)
            own, real = self.tables.get(address) or self._table(address)
            at.methods = ctypes.pointer(own)
            self.opened[file] = Path(_path(name)), real
            if flags & OPEN_CREATE and flags & OPEN_JOURNALS:
                self.unnamed.add(file)
        return int(code)

    def _table(self, address: int) -> tuple[Methods, Real]:
        own = Methods()
        ctypes.memmove(ctypes.addressof(own), address, ctypes.sizeof(Methods))
        real = Real(Methods.from_address(address))
        own.write, own.truncate, own.sync = (ctypes.cast(each, c_void_p) for each in self.file_functions)
        self.tables[address] = own, real
        return own, real

    def delete(self, vfs: int, name: int, sync_folder: int) -> int:
        path = Path(_path(name))
        if self.disk is None or not self.disk.is_mine(str(path)):
            return int(self.real_delete(vfs, name, sync_folder))
        if self.disk.running.is_dead:
            return OK
        code = int(self.real_delete(vfs, name, 0))
        if code == OK and sync_folder:
            return self._told(IOERR_FSYNC, lambda disk: disk.sync(path.parent))
        return code

    def randomness(self, vfs: int, n_bytes: int, into: int) -> int:
        if self.disk is None:
            return int(self.real_randomness(vfs, n_bytes, into))
        ctypes.memmove(into, self.disk.chance.randbytes(n_bytes), n_bytes)
        return n_bytes

    def write(self, file: int, content: int, n_bytes: int, offset: int) -> int:
        _, real = self.opened[file]

        def put(n: int) -> int:
            if n and (code := real.write(file, content, n, offset)) != OK:
                raise OSError(errno.EIO, f"SQLite's own code {code}")
            return n

        return self._told(IOERR_WRITE, lambda disk: disk.write(n_bytes, put))

    def truncate(self, file: int, n_bytes: int) -> int:
        _, real = self.opened[file]
        if self.disk is not None and self.disk.running.is_dead:
            return OK
        return int(real.truncate(file, n_bytes))

    def sync(self, file: int, flags: int) -> int:
        path, _ = self.opened[file]

        def sync(disk: Disk) -> None:
            disk.sync(path)
            if file in self.unnamed:
                disk.sync(path.parent)
                self.unnamed.discard(file)

        return self._told(IOERR_FSYNC, sync)

    def _told(self, failed: int, call: Callable[[Disk], object]) -> int:
        if self.disk is None:
            return OK  # a connection that outlived its world
        try:
            call(self.disk)
        except OSError as error:
            return FULL if error.errno == errno.ENOSPC else failed
        except BaseException as error:
            self.errors.append(error)
            return failed
        return OK


def _path(name: int) -> str:
    return os.fsdecode(ctypes.string_at(name))


def library() -> ctypes.CDLL:
    """SQLite as Python's own module has it, be it a library of the system or inside of the module; ImportError where it
    cannot be reached."""
    found = ctypes.CDLL(_sqlite3.__file__)
    try:
        found.sqlite3_vfs_find  # noqa: B018
    except AttributeError:
        raise ImportError("the SQLite of this Python hides its names, so no layer can be put below it") from None
    return found


VFS = SimulatedVfs()

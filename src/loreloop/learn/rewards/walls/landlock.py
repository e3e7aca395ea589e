"""Landlock: a process denies itself, for good, all files but those that it names, and TCP. See landlock(7)."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from loreloop.learn.rewards.walls.kernel import LIBC, syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEVICE = 1, 2, 4, 8, 1 << 14, 1 << 15
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
READING = EXECUTE | READ_FILE | READ_DIR
MAKING_NODES = (1 << 6) | (1 << 9) | (1 << 11)  # devices and sockets
FIRST_SOUND = 3  # the version since which emptying a file is among the rights
N_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # over files, by the version of the interface; 16 since the fifth
BOTH_TCP = 3  # binding and connecting, since the fourth version
BOTH_SCOPES = 3  # abstract Unix sockets and signals, since the sixth


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Of the interface; 0 where the kernel has none, or it is off."""
    return max(0, int(LIBC.syscall(ctypes.c_long(CREATE_RULESET), None, ctypes.c_long(0), ctypes.c_long(1))))


def restrict(readable: Sequence[Path], writable: Sequence[Path]) -> None:
    """From here on this process and its children read only below `readable` and `writable`, and write only below the
    latter. Needs `no_new_privileges`. OSError where the kernel has no Landlock."""
    known = version()
    every = (1 << N_RIGHTS.get(known, 16)) - 1
    wanted = _Ruleset(every, BOTH_TCP if known >= 4 else 0, BOTH_SCOPES if known >= 6 else 0)
    n_bytes = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}.get(known, 24)
    ruleset = syscall(CREATE_RULESET, wanted, n_bytes, 0)
    try:
        for path in readable:
            _allow(ruleset, path, READING & every)
        for path in writable:
            _allow(ruleset, path, every & ~MAKING_NODES)
        syscall(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # what is not there needs no right
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            # The kernel refuses a rule that grants a folder's rights on a file.
            rights &= OF_FILES
        syscall(ADD_RULE, ruleset, PATH_BENEATH, _PathRule(rights, handle), 0)
    finally:
        os.close(handle)

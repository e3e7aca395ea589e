"""The C library's door to the kernel: calls that Python has no name for, with their errors raised as OSError."""

from __future__ import annotations

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
CAPABILITY_VERSION = 0x20080522  # the third, which has two words for each set
N_CAPABILITIES = 64


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def checked(result: int, what: str) -> int:
    """The result of a call; OSError with the system's reason where it is below zero."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: int | ctypes.Array[ctypes.c_char] | ctypes.Structure | None) -> int:
    """One system call by its number. Structures go as their addresses."""
    plain = [ctypes.byref(one) if isinstance(one, ctypes.Structure) else one for one in arguments]
    numbers = [ctypes.c_long(one) if isinstance(one, int) else one for one in plain]
    return checked(LIBC.syscall(ctypes.c_long(number), *numbers), f"system call {number}")


def prctl(option: int, value: int) -> None:
    """Sets one property of this process."""
    checked(LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def die_with_parent(signal_number: int) -> None:
    """The kernel sends this signal when the parent ends; to be called again after a change of user."""
    prctl(PR_SET_PDEATHSIG, signal_number)


def no_new_privileges() -> None:
    """Programs that are set to run as somebody else do not, from here on; Landlock and filters ask for it."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """No right of an administrator is left, and no program can give one back."""
    for number in range(N_CAPABILITIES):
        # Kernels know fewer than 64; dropping one that is unknown, or without the right to, changes nothing.
        LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0)
    header = _CapHeader(CAPABILITY_VERSION, 0)
    checked(LIBC.capset(ctypes.byref(header), (ctypes.c_uint32 * 6)()), "capset")

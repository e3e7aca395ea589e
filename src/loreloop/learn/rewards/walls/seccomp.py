"""A filter over system calls: what no grader needs is refused before the kernel looks at it. See seccomp(2).

The filter is a program of the kernel's classic packet filter, written here instruction by instruction. The numbers of
calls are those of the kernel's tables for two processors; on another one there is no filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

from loreloop.learn.rewards.walls.kernel import LIBC, checked

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# name: (number on x86_64, on aarch64). Nobody needs these: they reach into other processes, kernel keys, mounts and
# parts of the kernel that are known for their faults.
NEVER = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "acct": (163, 89),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "syslog": (103, 116),
    # Memory that no limit counts: it stays when the process has let go of it.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
}
# Refused where there are no namespaces around: whatever reaches another process of this user, or its files.
STRICT = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "process_madvise": (440, 440),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # Landlock leaves it to the file's owner who may do what with a file.
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "lchown": (94, -1),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
FORKS = {"fork": (57, -1), "vfork": (58, -1)}  # -1: a processor whose table has no such call
FCNTL = (72, 25)
# A file can be told to send a signal, of any kind and to any process of this user, when something happens to it.
OWNERS_OF_FILES = (8, 15, 10)  # F_SETOWN, F_SETOWN_EX, F_SETSIG
KILL, TGKILL, PRLIMIT = (62, 129), (234, 131), (302, 261)
CLONE, CLONE3 = (56, 220), (435, 435)
CLONE_THREAD = 0x10000
X32 = 0x40000000  # a second table of calls on x86_64, which would go around the numbers above

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
AT_NUMBER, AT_ARCHITECTURE, AT_FIRST_ARGUMENT, AT_SECOND_ARGUMENT = 0, 4, 16, 24
ALLOW, KILL_PROCESS, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
PR_SET_SECCOMP, FILTER = 22, 2


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def available() -> bool:
    """Whether there is a filter for this processor."""
    return os.uname().machine in ARCHITECTURE


def refuse_calls(*, strict: bool) -> None:
    """Sets the filter for this process and its children, for good. `strict`: no new processes (threads are allowed), no
    sockets, and no call that names another process. Needs `no_new_privileges`."""
    machine = os.uname().machine
    steps = [*_steps(machine, strict=strict)]
    program = _Program(len(steps), (_Instruction * len(steps))(*steps))
    checked(
        LIBC.prctl(PR_SET_SECCOMP, ctypes.c_ulong(FILTER), ctypes.byref(program), 0, 0),
        "setting a filter for system calls",
    )


def _steps(machine: str, *, strict: bool) -> Iterator[_Instruction]:
    column = [*ARCHITECTURE].index(machine)
    yield _Instruction(LOAD, 0, 0, AT_ARCHITECTURE)
    yield _Instruction(JUMP_EQUAL, 1, 0, ARCHITECTURE[machine])
    yield _Instruction(RETURN, 0, 0, KILL_PROCESS)
    yield _Instruction(LOAD, 0, 0, AT_NUMBER)
    if machine == "x86_64":
        yield _Instruction(JUMP_AT_LEAST, 0, 1, X32)
        yield _Instruction(RETURN, 0, 0, ERROR | errno.EPERM)
    refused = NEVER | STRICT | FORKS if strict else NEVER
    for numbers in refused.values():
        if numbers[column] >= 0:
            yield from _refused(numbers[column], errno.EPERM)
    if strict:
        # The C library tries clone where clone3 is unknown; only clone's flags can be seen from here.
        yield from _refused(CLONE3[column], errno.ENOSYS)
        yield from _unless(CLONE[column], JUMP_SET, CLONE_THREAD)
        yield from _unless(KILL[column], JUMP_EQUAL, os.getpid())
        yield from _unless(TGKILL[column], JUMP_EQUAL, os.getpid())
        yield from _unless(PRLIMIT[column], JUMP_EQUAL, 0)
        for command in OWNERS_OF_FILES:
            yield from _with_second(FCNTL[column], command)
    yield _Instruction(RETURN, 0, 0, ALLOW)


def _refused(number: int, reason: int) -> Iterator[_Instruction]:
    yield _Instruction(JUMP_EQUAL, 0, 1, number)
    yield _Instruction(RETURN, 0, 0, ERROR | reason)


def _unless(number: int, jump: int, value: int) -> Iterator[_Instruction]:
    """Refused but where the low half of the first argument passes the test."""
    yield _Instruction(JUMP_EQUAL, 0, 4, number)
    yield _Instruction(LOAD, 0, 0, AT_FIRST_ARGUMENT)
    yield _Instruction(jump, 1, 0, value)
    yield _Instruction(RETURN, 0, 0, ERROR | errno.EPERM)
    yield _Instruction(RETURN, 0, 0, ALLOW)


def _with_second(number: int, value: int) -> Iterator[_Instruction]:
    """Refused where the low half of the second argument is the value; the number is loaded again behind it."""
    yield _Instruction(JUMP_EQUAL, 0, 4, number)
    yield _Instruction(LOAD, 0, 0, AT_SECOND_ARGUMENT)
    yield _Instruction(JUMP_EQUAL, 0, 1, value)
    yield _Instruction(RETURN, 0, 0, ERROR | errno.EPERM)
    yield _Instruction(LOAD, 0, 0, AT_NUMBER)

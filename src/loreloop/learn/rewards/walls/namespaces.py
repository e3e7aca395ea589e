"""Namespaces: a process that sees another user table, other mounts, no network and no other processes.

An unprivileged process may make them where the kernel allows user namespaces; root always may. The file system that
code sees is built of a few folders, read-only, over an empty one in memory. See user_namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loreloop.learn.rewards.walls.kernel import LIBC, PR_SET_DUMPABLE, checked, prctl, syscall

NEW_MOUNTS, NEW_UTS, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR = 442  # the same number everywhere, as for all calls since Linux 5.1
AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
NOBODY = 65534
INSIDE = 1000  # the user's and group's number as code sees it
DEVICES = ("null", "zero", "full", "random", "urandom")
WORK = "/sandbox"  # a name that no machine has


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace"))


@dataclass(frozen=True)
class Shown:
    """One path of the machine that code may read, as a handle that stays good while mounts change."""

    path: Path
    handle: int
    link: Path | None = None  # where it leads, as /lib is a link on most systems


def unshare(flags: int) -> None:
    """This process, or its children in the case of processes, gets namespaces of its own."""
    checked(LIBC.unshare(flags), "unshare")


def enter(readable: Sequence[Path], proc: int) -> None:
    """This process sees nothing but `readable` and has no network. Where it is root, the user inside is nobody outside:
    the kernel does not bound how many processes root has. `proc` is a handle of the machine's /proc."""
    is_root = os.geteuid() == 0
    uid, gid = (NOBODY, NOBODY) if is_root else (os.geteuid(), os.getegid())
    owner = os.getpid()
    ready, go = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        _name_users(ready, owner, f"{INSIDE} {uid} 1", f"{INSIDE} {gid} 1")
    os.close(ready)
    others = NEW_MOUNTS | NEW_NETWORK | NEW_IPC | NEW_UTS
    if is_root:
        # Root builds the file system as itself: nobody may not even look at what lies in root's home.
        unshare(others)
        enter_root(shown(readable))
    unshare(NEW_USER if is_root else NEW_USER | others)
    os.write(go, b"1")
    os.close(go)
    if os.waitpid(helper, 0)[1] != 0:
        raise OSError(1, "the users of the namespace could not be set")
    with contextlib.suppress(PermissionError):  # a map that an ordinary user wrote forbids it, and then nothing is left
        os.setgroups([])
    os.setresgid(INSIDE, INSIDE, INSIDE)
    os.setresuid(INSIDE, INSIDE, INSIDE)
    prctl(PR_SET_DUMPABLE, 1)  # a change of user takes the process's own folder under /proc away from it
    if not is_root:
        enter_root(shown(readable))
    # No further user namespace within this one: in there, code would have an administrator's rights again.
    most = os.open("sys/user/max_user_namespaces", os.O_WRONLY, dir_fd=proc)
    os.write(most, b"0")
    os.close(most)


def _name_users(ready: int, owner: int, uids: str, gids: str) -> None:
    """Never returns. Who stays outside may say who those inside are; a process inside can only name its own user."""
    code = 1
    with contextlib.suppress(OSError):
        if os.read(ready, 1):
            if os.geteuid() != 0:
                Path(f"/proc/{owner}/setgroups").write_text("deny")
            Path(f"/proc/{owner}/gid_map").write_text(gids)
            Path(f"/proc/{owner}/uid_map").write_text(uids)
            code = 0
    os._exit(code)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    told = (source.encode(), target.encode(), kind.encode() if kind else None)
    checked(LIBC.mount(*told, ctypes.c_ulong(flags), options.encode()), f"mounting {target}")


def read_only(target: str) -> None:
    """A mount and all below it: no writing, no devices, no programs that run as somebody else."""
    wanted = _MountAttributes(MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    path = ctypes.create_string_buffer(target.encode())
    syscall(MOUNT_SETATTR, -100, path, AT_RECURSIVE, wanted, ctypes.sizeof(wanted))


def shown(paths: Sequence[Path]) -> list[Shown]:
    """Handles of those paths that there are, and of a few devices; to be taken while this user may still see them."""
    devices = [Path("/dev", name) for name in DEVICES]
    found = [path for path in (*paths, *devices) if path.exists()]
    links = [path.readlink() if path.is_symlink() else None for path in found]
    handles = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in found]
    return [Shown(*parts) for parts in zip(found, handles, links, strict=True)]


def enter_root(shown: Sequence[Shown]) -> None:
    """The file system becomes an empty one in memory, with what is shown in its places and an empty `WORK`."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)  # what happens here is not seen outside
    root = tempfile.gettempdir()
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for one in shown:
        _show(one, Path(root))
    Path(root + WORK).mkdir()
    if not Path(root, "tmp").exists():  # or what code may read lies below it
        Path(root, "tmp").symlink_to(WORK)
    for one in shown:
        if one.link is None and one.path.parent != Path("/dev"):
            read_only(f"{root}{one.path}")
    os.chdir(root)
    # New root over old root, then the old one away from under it: pivot_root(2) describes this for one folder.
    here = ctypes.create_string_buffer(b".")
    syscall(PIVOT_ROOT[os.uname().machine], here, here)
    checked(LIBC.umount2(b".", MNT_DETACH), "leaving the old root")
    os.chdir("/")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    for one in shown:
        os.close(one.handle)


def _show(one: Shown, root: Path) -> None:
    target = Path(f"{root}{one.path}")
    target.parent.mkdir(parents=True, exist_ok=True)
    source = f"/proc/self/fd/{one.handle}"
    if one.link is not None:
        target.symlink_to(one.link)
        return
    if os.path.isdir(source):
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    mount(source, str(target), None, MS_BIND | MS_REC)


def fresh_work(disk_bytes: int) -> None:
    """An empty folder in memory at `WORK`, of bounded size, that this process and its children alone see."""
    # Anew for each call, so that nothing which one tenant's code leaves can be seen by the next one's.
    unshare(NEW_MOUNTS | NEW_IPC)
    mount("tmpfs", WORK, "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_bytes},nr_inodes=4096,mode=700")
    os.chdir(WORK)

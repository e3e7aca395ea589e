"""Children die with their parent: nothing of a server outlives its supervisor. Linux only, without effect elsewhere."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """From now on the parent's death kills this process; if it is dead already, so is this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died before the line above took effect.
        if os.getppid() != parent_pid:
            sys.exit(1)

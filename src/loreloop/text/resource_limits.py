"""A bound on the time and memory that a piece of untrusted, synchronous work may take in this process.

Python itself is interrupted: a timer's signal raises in the main thread, and the process may for the while not grow
beyond what it has and so much more. In another thread the time is not bounded.
"""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_ONE_AT_A_TIME = threading.RLock()


class LimitExceeded(BaseException):
    """Raised inside the work when its time is over; no `except Exception` in there can swallow it."""


@contextmanager
def limited(seconds: float, n_bytes: int) -> Iterator[None]:
    """LimitExceeded after so long, MemoryError beyond so much more memory; one thread at a time."""
    # The bound on memory is the process's. Two threads in here would each put back what the other had set.
    with _ONE_AT_A_TIME:
        yield from _limited(seconds, n_bytes)


def _limited(seconds: float, n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    room = address_space_bytes() + n_bytes
    # A bound that was set from outside stays, where it is the lower one.
    bound = room if soft == resource.RLIM_INFINITY else min(soft, room)
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    try:
        if threading.current_thread() is threading.main_thread():
            with _timed(seconds):
                yield
        else:
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _timed(seconds: float) -> Iterator[None]:
    def over(number: int, frame: FrameType | None) -> None:
        raise LimitExceeded

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)  # again, where the first one fell into a destructor
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def address_space_bytes() -> int:
    """Bytes of virtual memory that this process has mapped, which is what RLIMIT_AS bounds."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()

"""Work on files in a second thread, so that samples go on while a disk is slow.

What is done there may read the training state, which nobody changes meanwhile, and touches nothing of sampling. Knows
no files.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from loreloop.engine.contract import Pause, no_pause

PAUSE_SECONDS = 0.005  # between two pauses while the work goes on
T = TypeVar("T")


class Aside:
    """`alone` is an engine of one process. Where there are several, they make all calls in one order: work is then done
    where it is asked for, without a pause."""

    def __init__(self, *, alone: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "aside") if alone else None

    def done(self, work: Callable[[], T], pause: Pause) -> T:
        """What `work` gives or raises, having paused all the while. What a pause raises is raised when the work has
        ended, since no file may be left half written behind a caller's back."""
        if self._thread is None or pause is no_pause:
            return work()
        result: Future[T] = self._thread.submit(work)
        try:
            while not wait([result], PAUSE_SECONDS).done:
                pause()
        finally:
            wait([result])
        return result.result()

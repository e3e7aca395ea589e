"""Writes what piles up in memory a while after it came, once for all that came meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class WriteBehind:
    """Calls `flush` at most `seconds` after `soon`; lives on its caller's event loop and sleeps while nobody comes."""

    def __init__(self, seconds: float, flush: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.seconds, self.flush = seconds, flush
        self.due: asyncio.TimerHandle | None = None
        self.flushing: asyncio.Task[None] | None = None  # held, since the event loop itself holds tasks only weakly

    def soon(self) -> None:
        """Something is there to be written."""
        if self.due is None:
            self.due = asyncio.get_running_loop().call_later(self.seconds, self._begin)

    def call_off(self) -> None:
        """What is there is being written: nothing is due before more comes."""
        if self.due is not None:
            self.due.cancel()
            self.due = None

    def _begin(self) -> None:
        self.due = None
        self.flushing = asyncio.ensure_future(self.flush())

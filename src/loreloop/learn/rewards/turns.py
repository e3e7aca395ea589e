"""Whose turn it is where few can be served at once: askers take turns, however much each of them asks for.

Knows nothing of what is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Turns:
    """A number of places. With one queue for all, somebody's thousand slow calls would stand before everybody else's
    next one; here each asker has a queue, and a place that becomes free goes to the asker who has waited longest."""

    def __init__(self, places: int) -> None:
        self.free = places
        self.waiting: dict[str, deque[asyncio.Future[None]]] = {}  # in the order of whose turn it is

    @contextlib.asynccontextmanager
    async def turn(self, asker: str) -> AsyncIterator[None]:
        """Waits for a place and holds it."""
        await self._come(asker)
        try:
            yield
        finally:
            self._go()

    async def _come(self, asker: str) -> None:
        if self.free:
            self.free -= 1
            return
        mine = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(asker, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            # Given and cancelled in the same moment: the place must not be lost with its call.
            if not mine.cancelled():
                self._go()
            raise

    def _go(self) -> None:
        while self.waiting:
            asker = next(iter(self.waiting))
            queue = self.waiting.pop(asker)
            mine = queue.popleft()
            if queue:
                self.waiting[asker] = queue  # at the end: all others come before the next of the same asker
            if not mine.done():  # or its call was cancelled while it waited
                mine.set_result(None)
                return
        self.free += 1

"""Time that passes only when a simulation says so, and what happens in it: events in the order of their time, and an
event loop for the code of the HTTP process.

Of two events at the same moment the one that was asked for first comes first, so the same seed gives the same course.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

MOST_CALLBACKS = 200_000  # that one moment may have: a loop that never comes to rest is a bug


class Timeline:
    """`now` counts the seconds of one simulated world."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = count()

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Calls a function at a moment, or as soon as possible where that has passed."""
        heapq.heappush(self.events, (max(when, self.now), next(self.numbers), call))

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls a function when so much time has passed."""
        self.at(self.now + seconds, call)

    def next_event(self) -> bool:
        """Goes to the next event and has it happen; False where none is left."""
        if not self.events:
            return False
        self.now, _, call = heapq.heappop(self.events)
        call()
        return True


class SimulatedLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as tasks, futures and timeouts need: no sockets, no threads, no waiting."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.ready: deque[asyncio.Handle] = deque()
        self.errors: list[dict[str, Any]] = []  # what no task has handled
        self.is_over = False

    def run_ready(self) -> None:
        """Runs callbacks until none is left that could run now."""
        asyncio._set_running_loop(self)
        try:
            for n_run in count():
                if not self.ready:
                    return
                assert n_run < MOST_CALLBACKS, "the event loop of the HTTP process does not come to rest"
                handle = self.ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(None)

    def end(self) -> None:
        """The process is dead: nothing runs here any more but the ends of its tasks, so that they leave no trace."""
        self.is_over = True
        for _ in range(10):  # a task may begin to wait again while it ends
            tasks = asyncio.all_tasks(self)
            for task in tasks:
                task.cancel()
            if not tasks:
                break
            self.run_ready()
        self.ready.clear()

    # what asyncio asks of a loop

    def time(self) -> float:
        return self.timeline.now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.timeline.at(when, lambda: None if self.is_over else self.ready.append(handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.timeline.now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coroutine: Coroutine[Any, Any, Any], **named: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coroutine, loop=self, **named)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.is_over:
            self.errors.append(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

"""Waits for several pieces of work, of which some may fail or be cancelled, without losing the others.

Knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Settled(Generic[T]):
    """What came of it: the results in the order of the work, and for each piece that failed why."""

    results: tuple[T, ...]
    troubles: tuple[str, ...] = ()


async def settled(work: Iterable[Awaitable[T]], fatal: type[Exception] | tuple[()] = ()) -> Settled[T]:
    """Runs all at once and waits for all; an error that is `fatal` to every further piece is raised. Cancelled, it
    cancels what is running."""
    # Not `gather`: it gives up waiting at the first error, and the others would go on with nobody to take what they
    # give.
    # Each piece is a task itself: a coroutine inside another one would be lost, with a warning, where the outer one is
    # cancelled before its first step.
    tasks = [asyncio.ensure_future(each) for each in work]
    if not tasks:
        return Settled(())
    try:
        await asyncio.wait(tasks)
    finally:
        # Whoever waits here may be cancelled; what runs on would hold room on the server that nobody gives back.
        for task in tasks:
            task.cancel()
    for task in tasks:
        raise_fatal(task, fatal)
    good = tuple(task.result() for task in tasks if trouble_of(task) is None)
    return Settled(good, tuple(trouble for task in tasks if (trouble := trouble_of(task)) is not None))


def raise_fatal(task: asyncio.Future[T], fatal: type[Exception] | tuple[()]) -> None:
    """Raises what a task that has ended failed with, where that is `fatal`."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, fatal):
        raise error


def trouble_of(task: asyncio.Future[T]) -> str | None:
    """Why a task that has ended gave nothing, in words; None where it gave something."""
    # Asking a cancelled task for its exception raises it instead, so that question comes first.
    error = asyncio.CancelledError("it was cancelled") if task.cancelled() else task.exception()
    return None if error is None else f"{type(error).__name__}: {error}".rstrip(": ")

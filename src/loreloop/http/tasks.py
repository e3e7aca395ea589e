"""Ends tasks whose outcome nobody waits for any more."""

from __future__ import annotations

import asyncio
from typing import Any


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancels what still runs, and lets go of errors that nobody is left to hear: asyncio would log them as forgotten,
    the end of an iteration included."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            # Reading the exception marks it as seen, which is all that is wanted here.
            task.exception()

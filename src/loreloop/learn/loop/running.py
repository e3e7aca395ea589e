"""A loop as it runs: step after step, waiting for a server that is away, with a new session where its own has ended.

Knows no stage of a loop, and nothing of how one is put together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from loreloop.learn.loop.cycle import Course
from loreloop.learn.loop.sessions import SessionEnded
from loreloop.learn.loop.standing import tell_server
from loreloop.learn.loop.state import LoopFolder
from loreloop.learn.refusals import in_our_words
from loreloop.protocol.errors import LoreloopError, Unavailable

PATIENCE_SECONDS = 5.0  # before a server that did not answer is asked again


@dataclass(frozen=True)
class Running:
    """How a loop runs: until so many `cycles` have ended (None: for ever); `wish` is asked between steps whether to
    stop, and `tell` hears why nothing was promoted yet whenever that changes."""

    cycles: int | None = None
    wish: Callable[[], bool] = lambda: False
    tell: Callable[[str], None] = lambda said: None


async def run_anew(
    open_course: Callable[[], AbstractAsyncContextManager[Course]], running: Running, *, asked: bool = False
) -> None:
    """Runs a loop, which is opened anew whenever its session at the server has ended: it then goes on from what is on
    the disk, as after a death of its process. `asked` begins a cycle at once. What is wrong when it is opened first
    ends it."""
    first: int | None = None
    folder: LoopFolder | None = None
    told = ""
    while True:
        try:
            # Where the SDK begins a session or ends one, its errors are its own.
            with in_our_words("what the loop needs"):
                async with open_course() as course:
                    course.asked, folder, told = asked, course.folder, ""
                    first = n_ended(course) if first is None else first
                    try:
                        await run(course, running, first=first)
                        return
                    except SessionEnded as error:
                        asked = course.asked
                        running.tell(error.message)
        except Unavailable as error:
            # While it is opened again, the server may be as little there as at any other time.
            if first is None or folder is None:
                raise
            if error.message != told:
                told = error.message
                folder.tell(told)
                running.tell(told)
        except LoreloopError as error:
            if folder is not None:
                folder.tell(error.message)
            raise
        await asyncio.sleep(PATIENCE_SECONDS)


async def run(course: Course, running: Running, *, first: int | None = None) -> None:
    """Steps until so many cycles have ended, beside the `first` that had when it began. A server that does not answer
    is waited for; whatever it refuses for good ends the loop with its words. SessionEnded where a new session would do.
    """
    first, told = n_ended(course) if first is None else first, ""
    while not running.wish():
        try:
            with in_our_words("a step of the loop"):
                moved = await course.step()
        except SessionEnded:
            raise
        except Unavailable as error:
            course.folder.tell(error.message)
            moved, pause = False, max(PATIENCE_SECONDS, error.retry_after_seconds)
        except LoreloopError as error:
            # Trying again would change nothing; `status` says why the loop stands still.
            course.folder.tell(error.message)
            tell_server(course)
            raise
        else:
            pause = course.config.triggers.poll_seconds
        tell_server(course)
        if (sentence := course.folder.why()["sentence"]) != told:
            running.tell(sentence)
            told = sentence
        if running.cycles is not None and n_ended(course) - first >= running.cycles:
            return
        if not moved:
            await _meanwhile(course)
            await asyncio.sleep(pause)


async def _meanwhile(course: Course) -> None:
    """What waiting leaves time for; a server that does not answer is asked again at the next wait."""
    try:
        await course.listening.meanwhile()
    except SessionEnded:
        raise
    except Unavailable as error:
        course.folder.tell(error.message)


def n_ended(course: Course) -> int:
    """How many cycles have come to an end. One whose last decision is not done yet is not among them: whoever counts
    cycles may stop where one has ended, and would leave its canary as it is."""
    final, state = ("rejected", "promoted", "rolled_back", "void"), course.folder.load()
    ended = {one.cycle for one in course.folder.decisions() if one.verdict in final and one.person is None}
    return len(ended - {state.cycle} if state is not None and state.stage != "idle" else ended)

"""Whether it is for the loop's session at the server that something failed: sessions end where nobody has heard of a
client for a while, and with them the models that they hold. What was saved is still there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import tinker

from loreloop.learn.loop.door import Door
from loreloop.protocol.errors import Gone, LoreloopError, Unavailable

CLOSE_SECONDS = 10.0  # after which nobody waits for a server that does not answer; it ends the session by itself


@asynccontextmanager
async def session_of_its_own(begin: Callable[[], tinker.ServiceClient]) -> AsyncIterator[tinker.ServiceClient]:
    """A session for one piece of work. The server holds all models of a session until it ends, and of one key only so
    many: who works for months in a single session has them used up."""
    service = begin()
    try:
        # In a thread, as at its end: the SDK blocks until the server has answered.
        await asyncio.to_thread(lambda: service.holder)
        yield service
    finally:
        await asyncio.to_thread(closed, service)


def closed(service: tinker.ServiceClient) -> None:
    """Ends a session, with all models that it holds. One that cannot be ended now has no heartbeat any more."""
    with suppress(TimeoutError):
        service.close("success").future().exception(CLOSE_SECONDS)


class SessionEnded(Unavailable):
    """The loop's session is over; everything can go on in a new one, from what was saved last."""


@dataclass(frozen=True)
class LoopSession:
    """The session that a loop works in."""

    service: tinker.ServiceClient
    door: Door
    # Told where what a model has learned may be lost or half done, whosever it was.
    lost: Callable[[], None] = lambda: None
    # The session of a reward, which may end before the loop's own; what was lost is made again in another.
    beside: Callable[[], tinker.ServiceClient | None] = lambda: None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tells what fails within the block for the end of the session (SessionEnded), or of a model alone, which is
        made again from what it had saved (Unavailable), from what was refused for itself. Files that are gone are such
        a refusal by then: no later time brings them back."""
        try:
            yield
        except LoreloopError as error:
            # What was half done within the block is not known, whatever ended it; what was saved is.
            self.lost()
            if isinstance(error, Unavailable):
                raise
            if self.door.session_has_ended(self.service.holder.get_session_id()):
                raise SessionEnded(
                    "The server has ended the loop's session; a new one goes on from what was saved last."
                ) from None
            beside = self.beside()
            if beside is not None and self.door.session_has_ended(beside.holder.get_session_id()):
                raise Unavailable("The server has ended the reward's session; it goes on in a new one.") from None
            if isinstance(error, Gone):
                raise Unavailable(f"{error.message} The loop goes on from what was saved last.") from None
            raise

"""Whether it is for the loop's session at the server that something failed: sessions end where nobody has heard of a
client for a while, and with them the models that they hold. What was saved is still there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tinker

from loreloop.learn.loop.door import Door
from loreloop.protocol.errors import Gone, LoreloopError, Unavailable


class SessionEnded(Unavailable):
    """The loop's session is over; everything can go on in a new one, from what was saved last."""


@dataclass(frozen=True)
class LoopSession:
    """The session that a loop works in."""

    service: tinker.ServiceClient
    door: Door
    lost: Callable[[], None] = lambda: None  # told where a model alone is lost, whosever it was

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tells what fails within the block for the end of the session (SessionEnded), or of a model alone, which is
        made again from what it had saved (Unavailable), from what was refused for itself. Files that are gone are such
        a refusal by then: no later time brings them back."""
        try:
            yield
        except LoreloopError as error:
            if isinstance(error, Unavailable):
                raise
            if self.door.session_has_ended(self.service.holder.get_session_id()):
                raise SessionEnded(
                    "The server has ended the loop's session; a new one goes on from what was saved last."
                ) from None
            if isinstance(error, Gone):
                self.lost()
                raise Unavailable(f"{error.message} The loop goes on from what was saved last.") from None
            raise

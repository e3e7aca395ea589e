"""The reward's ear: when it hears of all turns and statements, so that none of them expires unheard.

A cycle lets it hear at its beginning. Between cycles, and while a canary waits for its users for days, it hears as
well, whenever something new was said. Knows neither rewards nor stages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from loreloop.learn.loop.server import Feeds
from loreloop.protocol.episodes import Turn
from loreloop.protocol.feedback import Feedback

Hear = Callable[[Sequence[Turn], Sequence[Feedback]], Awaitable[str]]
PAUSE_SECONDS = 60.0  # between two hearings without a cycle, since each reads the feeds whole


@dataclass
class Listening:
    """`hear` is None where nothing learns from statements; `now` gives seconds since the epoch."""

    server: Feeds
    hear: Hear | None
    now: Callable[[], float]
    heard: int = 0  # the number of the newest statement that this process has let the reward hear
    at: float = 0.0
    n_deleted: int = 0  # persons whose words it has forgotten

    async def listen(self) -> str:
        """Lets the reward hear everything; its alarm in a sentence, or ""."""
        if self.hear is None:
            return ""
        n_deleted = len(self.server.deleted_persons())
        turns, statements = list(self.server.turns()), list(self.server.feedback())
        alarm = await self.hear(turns, statements)
        self.heard = max((one.number for one in statements), default=self.heard)
        self.at, self.n_deleted = self.now(), n_deleted
        return alarm

    async def meanwhile(self) -> None:
        """Lets the reward hear while nothing else is to be done, where there is anything new."""
        if self.hear is None or self.now() - self.at < PAUSE_SECONDS:
            return
        n_deleted = len(self.server.deleted_persons())
        if n_deleted != self.n_deleted or any(True for _ in self.server.feedback(self.heard)):
            # An alarm is for the next cycle, which hears again and finds it then.
            await self.listen()

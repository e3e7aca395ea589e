"""What the course of a loop asks of a server: feeds to read, one deployment to move. `Door` is one over HTTP.

Types only, so that the course runs without any server too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from loreloop.learn.loop.door import Deployed
from loreloop.protocol.episodes import Turn
from loreloop.protocol.feedback import Feedback
from loreloop.protocol.loop_rest import LoopStanding


class Feeds(Protocol):
    """What there is to read: turns, statements, and who was deleted."""

    def turns(self, after: int = 0) -> Iterable[Turn]:
        """Recorded turns behind a number."""
        ...

    def feedback(self, after: int = 0) -> Iterable[Feedback]:
        """Statements behind a number."""
        ...

    def deleted_persons(self) -> frozenset[str]:
        """Persons whose data was deleted."""
        ...


class Server(Feeds, Protocol):
    """What the course asks of a server; `Door` is one."""

    def deployment(self) -> Deployed:
        """The deployment as it is now."""
        ...

    def deploy(self, target: str, canary: str | None = None, percent: float = 0.0, expected: int | None = None) -> None:
        """Moves the deployment, unless it stands there already. With the version that is `expected`, Conflict where
        somebody has moved it meanwhile."""
        ...

    def mark_used(
        self, candidate: str, revision: str | None, turns: Sequence[str], start: str | None = None
    ) -> tuple[str, ...]:
        """Says which turns a candidate is trained on, and with which revision it began; gives those that are not there
        any more."""
        ...

    def stand(self, standing: LoopStanding) -> None:
        """Says where the loop stands, for whoever looks at the server's pages."""
        ...

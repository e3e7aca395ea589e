"""What the commands of the loop ask the server of a data folder: turns, their counts, and the feedback on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from loreloop.cli.operator import checked, running_server_of

if TYPE_CHECKING:
    from loreloop.protocol.episodes import Turn
    from loreloop.protocol.feedback import Feedback

PAGE = 100


@contextmanager
def server_of(data_dir: str) -> Iterator[Any]:
    """An `httpx.Client` at the running server; BadRequest where none runs."""
    from loreloop.protocol.errors import BadRequest

    with running_server_of(data_dir) as client:
        if client is None:
            raise BadRequest(f"There is no server running on {data_dir}; `loreloop serve` starts it, and this asks it.")
        yield client


def at(name: str, verb: str) -> str:
    """The address of something about a deployment."""
    return f"/loop/v1/deployments/{quote(name, safe='')}/{verb}"


def turns_of(client: Any, name: str, **query: str) -> Iterator[Turn]:
    """The recorded turns of a deployment in their order, page after page."""
    import msgspec

    from loreloop.protocol.episodes import TurnPage

    after = 0
    while True:
        answer = checked(client.get(at(name, "turns"), params={**query, "after": after, "limit": PAGE}))
        page = msgspec.json.decode(answer.content, type=TurnPage)
        if not page.turns:
            return
        yield from page.turns
        after = page.next


def feedback_of(client: Any, name: str) -> Iterator[Feedback]:
    """All that was said about a deployment's answers, in its order."""
    import msgspec

    from loreloop.protocol.feedback import FeedbackPage

    after = 0
    while True:
        answer = checked(client.get(at(name, "feedback"), params={"after": after, "limit": 10 * PAGE}))
        page = msgspec.json.decode(answer.content, type=FeedbackPage)
        if not page.feedback:
            return
        yield from page.feedback
        after = page.next


def counts_of(client: Any, name: str) -> dict[str, Any]:
    """How many turns there are of each fate, and what else the server counts."""
    found: dict[str, Any] = checked(client.get(at(name, "turns/counts"))).json()
    return found

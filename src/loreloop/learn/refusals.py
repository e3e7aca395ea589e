"""What a server's refusal means to who works over the Tinker SDK: to be tried again later, or never again as it is.

Knows statuses and the SDK's errors, and nothing of what was asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import tinker
from tinker.types import RequestErrorCategory

from loreloop.protocol.errors import (
    BadRequest,
    Conflict,
    FilesGone,
    Forbidden,
    Gone,
    LoreloopError,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
)

KINDS: dict[int, type[LoreloopError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: TooLarge,
}
# Timeouts, a request that came too early, and too many at once. A server's own faults (5xx) may pass as well.
LATER = (408, 425, 429)
FIRST_OF_SERVER = 500
# About the key, the session or the loop's own standing, and not about what was asked: no other request fares better.
OF_EVERYTHING = (401, 403, 410)


class Refused(BadRequest):
    """The server refused what was asked, and would refuse it again; something else it may take."""


def kind_of(status: int) -> type[LoreloopError]:
    """The error that an HTTP status from 400 on stands for; Unavailable where it pays to try again."""
    if status in LATER or status >= FIRST_OF_SERVER:
        return Unavailable
    return KINDS.get(status, BadRequest)


@contextmanager
def in_our_words(what: str) -> Iterator[None]:
    """Has the SDK's errors within the block be ours, with the server's words. Unavailable where it pays to try again,
    Unauthorized, Forbidden or Gone where no request would fare better, and Refused for this one alone, as where files
    of what it asks for are gone."""
    try:
        yield
    except tinker.TinkerError as error:
        raise refusal(error, what) from None
    except httpx.HTTPError as error:
        # The SDK lets some errors of its connections through as they are.
        raise Unavailable(f"The server did not go on with {what}: {error}") from None


def refusal(error: tinker.TinkerError, what: str) -> LoreloopError:
    """One of the SDK's errors as ours; `what` was asked of the server."""
    refused = f"The server refused {what}: {words_of(error)}"
    if isinstance(error, tinker.APIStatusError):
        kind = kind_of(error.status_code)
        if kind is not Unavailable:
            of_everything = error.status_code in OF_EVERYTHING and not _names_files(error)
            return kind(refused) if of_everything else Refused(refused)
    elif isinstance(error, tinker.RequestFailedError) and error.category == RequestErrorCategory.User:
        return Refused(refused)
    return Unavailable(f"The server did not go on with {what}: {words_of(error)}")


def _names_files(error: tinker.APIStatusError) -> bool:
    """Whether it is for files of what was asked for that the server cannot go on, which no later time brings back."""
    return _about(error).get("details") == FilesGone.details


def words_of(error: tinker.TinkerError) -> str:
    """A server's own sentence out of its answer, where it has one; the SDK's message shows the whole body."""
    said = _about(error).get("message")
    return said if isinstance(said, str) else str(error)


def _about(error: tinker.TinkerError) -> dict[str, Any]:
    body = getattr(error, "body", None)
    about = body.get("error") if isinstance(body, dict) else None
    return about if isinstance(about, dict) else {}

"""What can go wrong, sorted by who can do something about it.

    LoreloopError
    ├── UserError          the caller can fix it
    │   ├── BadRequest     the request itself is wrong
    │   │   ├── TooLong    a prompt has more tokens than the model's window
    │   │   └── WrongSettings  a setting or a flag is
    │   ├── Unauthorized   no key, or not a key of this server
    │   ├── Forbidden      a key, but without the scope
    │   ├── NotFound       no such thing, or not yours
    │   ├── Conflict       something else must be undone first
    │   ├── Gone           it existed and has expired
    │   └── TooLarge       over a limit that is written down
    ├── ServerError        we must fix it
    └── Unavailable        nobody's fault; try again after `retry_after_seconds`
        └── OutOfService   for everybody: the server stops, or its disk is full

A message says what was asked, what is wrong and what to do. This file does not know HTTP
status codes; `http/app.py` chooses them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class LoreloopError(Exception):
    """Base of every error that Loreloop raises on purpose."""

    category = "unknown"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UserError(LoreloopError):
    category = "user"


class BadRequest(UserError):
    """`details` are for clients that look there for what they could do without."""

    def __init__(self, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = details


class TooLong(BadRequest):
    pass


class WrongSettings(BadRequest):
    pass


class Unauthorized(UserError):
    pass


class Forbidden(UserError):
    pass


class NotFound(UserError):
    pass


class Conflict(UserError):
    pass


class Gone(UserError):
    pass


class TooLarge(UserError):
    """`head` is the beginning of what was too large."""

    def __init__(self, message: str, head: bytes = b"") -> None:
        super().__init__(message)
        self.head = head


class ServerError(LoreloopError):
    category = "server"


class Unavailable(LoreloopError):
    category = "server"

    def __init__(self, message: str, retry_after_seconds: float = 1.0, queue_position: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds, self.queue_position = retry_after_seconds, queue_position


class OutOfService(Unavailable):
    pass


def outcome_of(call: Callable[[], T]) -> T | Exception:
    """What a call gives, or the error that it raises, as a value. For who must go on whatever the work of others does:
    threads that serve many, and foreign code on foreign data. What the error means is told by the caller."""
    try:
        return call()
    except Exception as error:
        return error


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def disk_trouble(error: BaseException) -> OutOfService | None:
    """What a full or failing disk means to whoever asked for something to be kept; None for any other error. Libraries
    in Rust tell the system's number in words."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    if number not in DISK_ERRORS:
        return None
    return OutOfService(
        f"The disk of the data folder does not take this: {os.strerror(number)}. Make room there.", 30.0
    )

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
    │   │   └── FilesGone  files of it are missing or damaged
    │   ├── TooLarge       over a limit that is written down
    │   └── Misdirected    under a name that is none of this server's
    ├── ServerError        we must fix it
    └── Unavailable        nobody's fault; try again after `retry_after_seconds`
        └── OutOfService   for everybody: the server stops, or its disk is full

A message says what was asked, what is wrong and what to do. This file does not know HTTP
status codes; `http/application.py` chooses them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class LoreloopError(Exception):
    """Base of every error that Loreloop raises on purpose."""

    category = "unknown"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UserError(LoreloopError):
    """Base of the errors that the caller can mend; HTTP answers them with a status of the 400s."""

    category = "user"


class BadRequest(UserError):
    """`details` are for clients that look there for what they could do without."""

    def __init__(self, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = details


class TooLong(BadRequest):
    """A prompt, with the tokens that are to follow it, does not fit into the model's context window."""


class WrongSettings(BadRequest):
    """A setting in the configuration file, or a flag of the command line, cannot be used."""


class Unauthorized(UserError):
    """The request came without a key, or with one that this server does not know."""


class Forbidden(UserError):
    """The key is known, and lacks the scope that the request needs."""


class NotFound(UserError):
    """There is no such thing, or it belongs to another key; which of the two is not revealed."""


class Conflict(UserError):
    """The request contradicts the present state, so that something else must be undone first."""


class Gone(UserError):
    """The thing existed, and has expired, been deleted, or been found damaged."""


class FilesGone(Gone):
    """Files of something that was saved are missing or damaged: whoever asks for it again later gets the same."""

    details: Mapping[str, Any] = {"gone": "files"}


class TooLarge(UserError):
    """`head` is the beginning of what was too large."""

    def __init__(self, message: str, head: bytes = b"") -> None:
        super().__init__(message)
        self.head = head


class Misdirected(UserError):
    """The request names a host that this server does not answer for."""


class ServerError(LoreloopError):
    """A fault of this server, which its operator or its makers must mend."""

    category = "server"


class Unavailable(LoreloopError):
    """Nobody's fault and likely to pass: the client may try again after `retry_after_seconds`. `queue_position`
    counts the requests ahead, where that is known."""

    category = "server"

    def __init__(self, message: str, retry_after_seconds: float = 1.0, queue_position: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds, self.queue_position = retry_after_seconds, queue_position


class OutOfService(Unavailable):
    """Unavailable for everybody, and not for this request alone: the server is stopping, or its disk is full."""


def outcome_of(call: Callable[[], T]) -> T | Exception:
    """What a call gives, or the error that it raises, as a value. For who must go on whatever the work of others does:
    threads that serve many, and foreign code on foreign data. What the error means is told by the caller."""
    try:
        return call()
    except Exception as error:
        return error


# What the system says of a file that is not there, or has something else in its place; whatever else it says may pass.
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENODEV, errno.ENXIO)


def reading_trouble(error: BaseException, path: Path) -> OutOfService | None:
    """What it means that a file at rest cannot be read just now: for want of rights, memory or open files, or while its
    disk is away. None where the file is not there, or the error is none of the system's. Nothing that a file holds is
    given up for such trouble."""
    number = _system_number(error)
    if number is None or number in NOT_THERE:
        return None
    return OutOfService(
        f"{path} cannot be read just now: {os.strerror(number)}. It is not taken for damaged: once it "
        "can be read, this works again.",
        30.0,
    )


def _system_number(error: BaseException) -> int | None:
    """The system's own number of an error. Libraries in Rust tell it in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    # These libraries raise errors of their own kind, so that the text is all there is.
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def disk_trouble(error: BaseException) -> OutOfService | None:
    """What a full or failing disk means to whoever asked for something to be kept; None for any other error."""
    number = _system_number(error)
    if number is None or number not in DISK_ERRORS:
        return None
    return OutOfService(
        f"The disk of the data folder does not take this: {os.strerror(number)}. Make room there.", 30.0
    )

"""Where a server listens, and what is said where it cannot."""

from __future__ import annotations

import errno
import socket

from loreloop.protocol.errors import BadRequest, WrongSettings

BACKLOG = 4096  # connections that may wait: a client may open two thousand at once


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; WrongSettings and BadRequest name the flag that would help."""
    try:
        return _listening(host, port)
    except (socket.gaierror, UnicodeError) as error:  # the second: a name no encoding for names takes
        why = error.strerror if isinstance(error, OSError) else "no such name can be"
        raise WrongSettings(f"`host` (--host) is {host!r}, which is no address of this machine: {why}.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadRequest(f"Cannot listen on {host}:{port}: {error.strerror}. Give another --port.") from None
        if error.errno == errno.EACCES:
            raise BadRequest(
                f"Cannot listen on {host}:{port}: {error.strerror}. Ports below 1024 are the system's; give another "
                "--port."
            ) from None
        raise WrongSettings(f"Cannot listen on `host` (--host) {host!r}: {error.strerror}.") from None


def check_address(host: str, port: int) -> None:
    """Whether `listen` would succeed now, before anything else is done for a start."""
    listen(host, port).close()


def _listening(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listening = socket.socket(family)
    try:
        # Without it a server that is started again at once would find its own port taken for a minute.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening

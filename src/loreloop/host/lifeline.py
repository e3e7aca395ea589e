"""Connections between the processes of an engine on several hosts, that are there to break when a process is lost.

A process that dies closes its end, which shows at once. A host that vanishes and a link that is cut close nothing: the
system therefore probes a silent connection, and gives it up after `LOST_SECONDS`. That is the kernels' work, so that a
process is never taken for lost because it computes. What the others have to say comes this way too: for the log, and of
what they do (`silence.py`). Knows no tensors, and not how the processes were started.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loreloop.protocol.errors import ServerError

PROBE_SECONDS, N_PROBES = 2, 3
LOST_SECONDS = PROBE_SECONDS * (N_PROBES + 1)
MOST_GREETING = 256  # bytes
GREETING_SECONDS = 5.0
MOST_SILENT = 64  # connections that have not greeted yet
SELECT_SECONDS = 0.1
CLOSED = "its connection was closed"
OF_ITSELF = b"\x16"  # before a line in which a process says what it does; any other is for the log

Lost = Callable[[str], None]
Said = Callable[[int, str], None]  # what a rank says of itself


@dataclass(frozen=True)
class Address:
    """Where the first process listens, and the word by which it knows the others."""

    host: str
    port: int
    token: str


class Lifelines:
    """The first process's ends. Listens at `host`, on a free port, until all others are there."""

    def __init__(self, host: str, token: str) -> None:
        self._listener = socket.create_server((host, 0), family=family_of(host))
        self.address = Address(host, self._listener.getsockname()[1], token)

    def gather(
        self, names: Mapping[int, str], seconds: float, lost: Callable[[int, str], None], said: Said | None = None
    ) -> None:
        """Waits for every rank of `names`; from then on `lost` is called, once, with a rank that is lost and why, and
        `said` with what a rank says of itself. ServerError where one does not come. Nobody else is heard afterwards."""
        deadline, waiting = time.monotonic() + seconds, dict(names)
        with self._listener, selectors.DefaultSelector() as heard:
            self._listener.setblocking(False)
            heard.register(self._listener, selectors.EVENT_READ)
            # Who has not said yet who it is, and until when it may: a stranger's silence must hold up nobody else.
            silent: dict[socket.socket, float] = {}
            try:
                while waiting:
                    if time.monotonic() > deadline:
                        who = ", ".join(waiting.values())
                        raise ServerError(f"No word came within {seconds:g} s from {who} over {self.address.host}.")
                    for key, _ in heard.select(SELECT_SECONDS):
                        connection = key.fileobj
                        assert isinstance(connection, socket.socket)
                        if connection is self._listener:
                            self._welcome(heard, silent)
                            continue
                        heard.unregister(connection)
                        del silent[connection]
                        if waiting.pop(rank := self._greeted(connection), None) is None:
                            connection.close()  # somebody else, or one that is there already
                        else:
                            _watch(connection, functools.partial(lost, rank), functools.partial(_take, rank, said))
                    _send_away(heard, silent)
            finally:
                for connection in silent:
                    connection.close()

    def _welcome(self, heard: selectors.BaseSelector, silent: dict[socket.socket, float]) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has left again
        connection.setblocking(False)
        heard.register(connection, selectors.EVENT_READ)
        silent[connection] = time.monotonic() + GREETING_SECONDS

    def _greeted(self, connection: socket.socket) -> int:
        """The rank that speaks there; -1 for a stranger."""
        try:
            greeting = connection.recv(MOST_GREETING, socket.MSG_PEEK).partition(b"\n")[0]
            connection.recv(len(greeting) + 1)  # and nothing of what it says next, which may be there already
            rank, _, token = greeting.strip().partition(b" ")
        except OSError:
            return -1
        # Compared in constant time, as with every secret that somebody may guess at; in bytes, as a stranger need not
        # write ASCII.
        return int(rank) if rank.isdigit() and hmac.compare_digest(token, self.address.token.encode()) else -1


def _send_away(heard: selectors.BaseSelector, silent: dict[socket.socket, float]) -> None:
    """Those whose time to greet is over, and the oldest where there are too many."""
    now = time.monotonic()
    n_over = max(sum(until < now for until in silent.values()), len(silent) - MOST_SILENT)
    for connection in list(silent)[:n_over]:
        heard.unregister(connection)
        connection.close()
        del silent[connection]


class Line:
    """The other processes' end, on which any thread may write whole lines."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def write(self, text: str) -> None:
        """Lines for the log of the first process. OSError where that is lost."""
        self._send(text.encode())

    def flush(self) -> None:
        """What was written has left already."""

    def tell(self, text: str) -> None:
        """One line, of what this process does. Where the first process is lost, nobody needs it."""
        with contextlib.suppress(OSError):
            self._send(OF_ITSELF + text.encode() + b"\n")

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def _send(self, lines: bytes) -> None:
        with self._lock:
            self._connection.sendall(lines)


def hold(address: Address, rank: int, lost: Lost) -> Line:
    """The other processes' end: connects, and calls `lost` when the first process is. OSError where it is not there."""
    connection = socket.create_connection((address.host, address.port), timeout=LOST_SECONDS)
    connection.sendall(f"{rank} {address.token}\n".encode())
    _watch(connection, lost, None)
    return Line(connection)


def family_of(host: str) -> socket.AddressFamily:
    """Of an address in numbers."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _watch(connection: socket.socket, lost: Lost, take: Callable[[bytes], None] | None) -> None:
    connection.settimeout(None)
    _probe(connection)
    threading.Thread(target=_read, args=(connection, lost, take), name="lifeline", daemon=True).start()


def _probe(connection: socket.socket) -> None:
    """Has the system ask whether the other side is there, also while what was sent is not acknowledged."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # The first is called otherwise on macOS; where one is missing, the system's own pace is kept.
    for name, value in (
        ("TCP_KEEPIDLE", PROBE_SECONDS),
        ("TCP_KEEPALIVE", PROBE_SECONDS),
        ("TCP_KEEPINTVL", PROBE_SECONDS),
        ("TCP_KEEPCNT", N_PROBES),
        ("TCP_USER_TIMEOUT", LOST_SECONDS * 1000),
    ):
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _read(connection: socket.socket, lost: Lost, take: Callable[[bytes], None] | None) -> None:
    why = CLOSED
    try:
        with connection.makefile("rb") as lines:
            for line in lines:
                if take:
                    take(line)
    except OSError as error:
        why = f"no answer over the network ({error.strerror or error})"
    lost(why)


def _take(rank: int, said: Said | None, line: bytes) -> None:
    """What another process says of itself is for `said`, all else for whoever reads this one's log."""
    if line.startswith(OF_ITSELF):
        if said:
            said(rank, line.removeprefix(OF_ITSELF).decode(errors="replace"))
        return
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()

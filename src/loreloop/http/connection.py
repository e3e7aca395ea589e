"""The web server's connections with bounds on how long a client may take: to say what it wants, to send it, to read.

Without them every connection that is never finished stays for ever, and with enough of them nobody else gets in. What
the server itself takes, long polls and streams, is not bounded here. Knows no application.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"


class BoundedConnection(HttpToolsProtocol):
    """A head must be there `head_seconds` after the connection, or its first byte; of a body `body_bytes` must come in
    every `body_seconds`, or its end; and an answer must be read on within `read_seconds`."""

    head_seconds: ClassVar[float] = 20.0
    body_seconds: ClassVar[float] = 30.0
    body_bytes: ClassVar[int] = 256 << 10
    read_seconds: ClassVar[float] = 300.0

    _coming: asyncio.TimerHandle | None = None  # what the client sends
    _going: asyncio.TimerHandle | None = None  # what it reads
    _n_bytes = 0  # of the body, since the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock for the first request's head as soon as the connection stands, even if no byte ever
        comes."""
        super().connection_made(transport)
        self._expect(self.head_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops both clocks, which would otherwise keep the connection's objects alive until they ring."""
        for timer in (self._coming, self._going):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Starts the clock for the head of a further request on a connection that is kept alive."""
        if self._coming is None and (self.cycle is None or self.cycle.response_complete):
            self._expect(self.head_seconds, self._head_is_late)  # of the next request, also if only blank lines come
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Starts the clock for a request that came in one piece with the one before it."""
        super().on_message_begin()
        if self._coming is None:  # it came behind another request, in one piece
            self._expect(self.head_seconds, self._head_is_late)

    def on_headers_complete(self) -> None:
        """The head is there: from here on the clock measures how fast the body comes."""
        super().on_headers_complete()
        self._n_bytes = 0
        self._expect(self.body_seconds, self._body_is_late)

    def on_body(self, body: bytes) -> None:
        """Counts the bytes of the body, by which the clock judges whether the client is still sending."""
        self._n_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole, so nothing more is expected of the client and the clock is stopped."""
        super().on_message_complete()
        if self._coming is not None:
            self._coming.cancel()
        self._coming = None

    def pause_writing(self) -> None:
        """The buffer of the answer is full because the client does not read; it has `read_seconds` from here."""
        super().pause_writing()
        # A clock that runs already is kept: a client that reads one byte at a time would otherwise push its end away
        # for ever. Aborting drops what is still to be sent, since a polite close would wait for the reader.
        self._going = self._going or self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again, so the connection may stay."""
        super().resume_writing()
        if self._going is not None:
            self._going.cancel()
        self._going = None

    def _expect(self, seconds: float, then: Callable[[], None]) -> None:
        if self._coming is not None:
            self._coming.cancel()
        self._coming = self.loop.call_later(seconds, then)

    def _head_is_late(self) -> None:
        self._hang_up(f"The head of the request did not come within {self.head_seconds:g} s.")

    def _body_is_late(self) -> None:
        if self._n_bytes >= self.body_bytes or self.flow.read_paused:  # the second: it is us who do not read
            self._n_bytes = 0
            self._expect(self.body_seconds, self._body_is_late)
        else:
            self._hang_up(f"The body of the request came at under {self.body_bytes} bytes in {self.body_seconds:g} s.")

    def _hang_up(self, why: str) -> None:
        # An answer can only be sent where none has begun; in the middle of one, 408 would be read as a part of it.
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            error = f'{{"detail": "{why}", "error": {{"message": "{why}", "type": "timeout_error"}}}}'.encode()
            self.transport.write(TOO_SLOW + b"content-length: %d\r\n\r\n" % len(error) + error)
        self.transport.close()

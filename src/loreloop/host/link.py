"""The two ends of a socket between the HTTP process and one that works for it: an engine, or the worker of the jobs.

A frame is a 4-byte big-endian length and one MessagePack message of `protocol.link` or `protocol.jobs`. The end of the
stream is news too: the other side is dead. Knows nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from loreloop.protocol.jobs import FromWorker, ToWorker
from loreloop.protocol.link import FromEngine, ToEngine

LENGTH = struct.Struct(">I")
Told = TypeVar("Told")
Heard = TypeVar("Heard")
Link = TypeVar("Link", bound="_Link[Any, Any]")


def frame(message: ToEngine | FromEngine | ToWorker | FromWorker) -> bytes:
    """A message as it goes over the socket: its length in four bytes, then the message."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


class _Connection(Generic[Told, Heard]):
    """The HTTP process's end: `send` never waits, `messages` ends when the other process is gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Any) -> None:
        self.reader, self.writer = reader, writer
        self.decoder: msgspec.msgpack.Decoder[Heard] = msgspec.msgpack.Decoder(heard)

    def send(self, message: Told) -> None:
        """Hands a message to the event loop, which writes it when the socket takes it."""
        self.writer.write(frame(message))  # type: ignore[arg-type]

    async def messages(self) -> AsyncIterator[Heard]:
        """The other's messages as they come; the end of the stream, however it came about, ends them."""
        try:
            while True:
                (length,) = LENGTH.unpack(await self.reader.readexactly(LENGTH.size))
                yield self.decoder.decode(await self.reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()

    def close(self) -> None:
        """Hangs up; the other takes that for its own end."""
        self.writer.close()


class EngineConnection(_Connection[ToEngine, FromEngine]):
    """The HTTP process's end of an engine's socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer, FromEngine)


class WorkerConnection(_Connection[ToWorker, FromWorker]):
    """The HTTP process's end of the worker's socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer, FromWorker)


class _Link(Generic[Heard, Told]):
    """The working process's end: one thread fills `inbox` (None at the stream's end), another one empties an outbox."""

    def __init__(self, path: Path, heard: Any) -> None:
        self.decoder: msgspec.msgpack.Decoder[Heard] = msgspec.msgpack.Decoder(heard)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.inbox: queue.SimpleQueue[Heard | None] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[Told | None] = queue.SimpleQueue()
        self.reader = threading.Thread(target=self._read, name="link-reader", daemon=True)
        self.writer = threading.Thread(target=self._write, name="link-writer", daemon=True)
        self.reader.start()
        self.writer.start()

    def send(self, message: Told) -> None:
        """Puts a message into the outbox; the computing thread never waits for the socket."""
        self.outbox.put(message)

    def close(self) -> None:
        """Sends what waits, then hangs up."""
        self.outbox.put(None)
        self.writer.join()
        self.socket.shutdown(socket.SHUT_RDWR)  # the reader's file holds the socket open otherwise
        self.socket.close()

    def _read(self) -> None:
        stream = self.socket.makefile("rb")
        try:
            while len(head := stream.read(LENGTH.size)) == LENGTH.size:
                self.inbox.put(self.decoder.decode(stream.read(LENGTH.unpack(head)[0])))
        except (OSError, ValueError, msgspec.DecodeError):
            pass  # a broken stream is an ended one
        # The process's loop sleeps on this queue, so the end of the stream must come through it too.
        self.inbox.put(None)

    def _write(self) -> None:
        while (message := self.outbox.get()) is not None:
            try:
                self.socket.sendall(frame(message))  # type: ignore[arg-type]
            except OSError:
                return  # the reader notices the end too


class EngineLink(_Link[ToEngine, FromEngine]):
    """An engine's end of its socket."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ToEngine)


class WorkerLink(_Link[ToWorker, FromWorker]):
    """The worker's end of its socket."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ToWorker)


def first_link(kind: Callable[[Path], Link], path: Path) -> Link:
    """A process's link at its start. Waits for the HTTP process, which may be starting at the same time, and exits
    where nobody listens after a minute."""
    for _ in range(600):
        try:
            return kind(path)
        except OSError:
            time.sleep(0.1)
    sys.exit(f"loreloop: nobody listens on {path}")

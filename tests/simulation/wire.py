"""A connection between the HTTP process and an engine, of which a simulation decides when bytes arrive.

As on a socket bytes arrive in order or not at all: whatever is on the way when a side ends may be lost. Messages are
framed and read by the code of `host/link.py`; only the threads and the socket below it are not there.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

import msgspec

from loreloop.host.link import LENGTH, EngineConnection, frame
from loreloop.protocol.link import FromEngine, ToEngine
from tests.simulation.process import ThreadProcess
from tests.simulation.timeline import SimulatedLoop, Timeline

DECODER = msgspec.msgpack.Decoder(ToEngine)


class Direction:
    """Bytes from one side to the other. `arrive` takes them, None at the end of the stream."""

    def __init__(self, wire: Wire, arrive: Callable[[bytes | None], None]) -> None:
        self.wire, self.arrive = wire, arrive
        self.last_arrival, self.is_ended, self.is_lossy = 0.0, False, False

    def send(self, content: bytes) -> None:
        """Puts bytes on their way, perhaps in two parts."""
        chance = self.wire.chance
        cut = chance.randrange(len(content)) if chance.random() < 0.1 else 0
        for part in filter(None, (content[:cut], content[cut:])):
            self._put(part)

    def end(self, *, lossy: bool = False) -> None:
        """Nothing is sent any more; what is on the way arrives before the end, or is lost."""
        self.is_lossy |= lossy
        self._put(None)

    def _put(self, part: bytes | None) -> None:
        timeline = self.wire.timeline
        self.last_arrival = max(self.last_arrival, timeline.now + self.wire.delay_seconds())
        timeline.at(self.last_arrival, lambda: self._arrived(part))

    def _arrived(self, part: bytes | None) -> None:
        if self.is_ended or (self.is_lossy and part is not None):
            return
        self.is_ended = part is None
        self.arrive(part)


class Wire:
    """Both directions, and what stands at their ends: `inbox` for the engine, `connection` for the HTTP process."""

    def __init__(
        self,
        timeline: Timeline,
        loop: SimulatedLoop,
        engine: ThreadProcess,
        chance: random.Random,
        delay_seconds: Callable[[], float],
    ) -> None:
        self.timeline, self.loop, self.engine, self.chance = timeline, loop, engine, chance
        self.delay_seconds = delay_seconds
        self.inbox = Inbox(engine)
        self.reader = asyncio.StreamReader(limit=1 << 26, loop=loop)
        self.to_engine = Direction(self, self.inbox.arrive)
        self.to_server = Direction(self, self._arrive_at_server)
        self.connection = EngineConnection(self.reader, ServerEnd(self))  # type: ignore[arg-type]

    def send(self, message: FromEngine) -> None:
        """What the engine says."""
        self.to_server.send(frame(message))

    def cut(self) -> None:
        """The connection breaks; what was on the way is lost."""
        self.to_engine.end(lossy=True)
        self.to_server.end(lossy=True)

    def engine_ended(self, *, lossy: bool) -> None:
        """What it sent before may still arrive."""
        self.to_server.end(lossy=lossy)

    def server_ended(self, *, lossy: bool) -> None:
        """The same for the other side."""
        self.to_engine.end(lossy=lossy)

    def _arrive_at_server(self, part: bytes | None) -> None:
        if self.loop.is_over:
            return
        if part is None:
            self.reader.feed_eof()
        else:
            self.reader.feed_data(part)


class ServerEnd:
    """As much of a StreamWriter as a connection needs."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def write(self, content: bytes) -> None:
        self.wire.to_engine.send(content)

    def close(self) -> None:
        self.wire.to_engine.end()
        self.wire.to_server.end(lossy=True)  # nobody reads any more, and the reader here hears of its end


class Inbox:
    """As much of a SimpleQueue as the scheduler needs."""

    def __init__(self, engine: ThreadProcess) -> None:
        self.engine = engine
        self.pending = b""
        self.messages: deque[ToEngine | None] = deque()

    def arrive(self, part: bytes | None) -> None:
        self.pending += part or b""
        while len(self.pending) >= LENGTH.size:
            (length,) = LENGTH.unpack(self.pending[: LENGTH.size])
            if len(self.pending) < LENGTH.size + length:
                break
            self.messages.append(DECODER.decode(self.pending[LENGTH.size : LENGTH.size + length]))
            self.pending = self.pending[LENGTH.size + length :]
        if part is None:
            self.messages.append(None)
        if self.messages:
            self.engine.wake()

    def put(self, message: ToEngine) -> None:
        """What comes from elsewhere: a signal."""
        self.messages.append(message)
        self.engine.wake()

    def empty(self) -> bool:
        return not self.messages

    def get(self) -> ToEngine | None:
        while not self.messages:
            self.engine.wait()
        return self.messages.popleft()

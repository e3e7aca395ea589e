"""A dispatcher with its store and its socket, as the HTTP process has them, and engines that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

from loreloop.config import Config
from loreloop.engine.fake import FakeEngine
from loreloop.host.dispatcher import Dispatcher
from loreloop.host.link import EngineConnection
from loreloop.protocol.training import LoraSpec, TrainOp
from loreloop.store import keys, runs, sessions
from loreloop.store.rows import Acceptance, Outcome, RunRow, SessionNew
from loreloop.store.store import Store
from tests.host.engine_process import serve
from tests.store.place import write_now

ROOT = Path(__file__).parent.parent.parent


class Office:
    """`dispatcher` and what it stands in; `run` and `session_id` are rows that operations may belong to."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.socket = folder, folder / "engine.sock"
        self.store = Store(folder / "data", "os")
        self.dispatcher = Dispatcher(config, self.store, ("fake",))
        self.threads: list[threading.Thread] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.key_id = write_now(self.store, keys.create, "test", ("admin",), time.time()).row.id
        self.session_id = write_now(self.store, sessions.create, self.key_id, SessionNew(), time.time())

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        await self.dispatcher.serve_engine(EngineConnection(reader, writer))

    def run(self, number: int = 0) -> str:
        """A new training run's id."""
        run_id = f"{self.session_id}:train:{number}"
        now = time.time()
        row = RunRow(run_id, self.session_id, self.key_id, "fake", LoraSpec(8, 1), now, now, None, True)
        write_now(self.store, runs.create, row)
        return run_id

    async def submit(self, *ops: TrainOp) -> None:
        for op in ops:
            await self.dispatcher.submit(op, Acceptance("fake", repr(op)))

    async def result(self, op: TrainOp, hold_seconds: float = 20.0) -> Outcome:
        outcome = await self.dispatcher.outcome(op.request_id, hold_seconds)
        assert outcome is not None, f"{op.request_id} has no result"
        return outcome

    def start_thread(
        self,
        layer_seconds: float = 0.0,
        snapshot_seconds: float = 1e9,
        engine: FakeEngine | None = None,
        replica: int = 0,
    ) -> None:
        """An engine in a thread of this process, which ends with the connection."""
        arguments = (self.socket, self.folder / "snapshots", layer_seconds, snapshot_seconds, engine, replica)
        self.threads.append(threading.Thread(target=serve, args=arguments))
        self.threads[-1].start()

    async def keep_a_thread(self) -> None:
        """Starts the next engine whenever one has ended, as the supervisor does."""
        while True:
            self.start_thread()
            while self.threads[-1].is_alive():
                await asyncio.sleep(0.01)

    def hang_up(self) -> None:
        """Breaks every connection; the engines in threads end."""
        for writer in self.writers:
            writer.close()

    async def start_engine(self, layer_seconds: float = 0.0, replica: int = 0) -> asyncio.subprocess.Process:
        arguments = (str(self.socket), str(self.folder / "snapshots"), str(layer_seconds), str(replica))
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.host.engine_process", *arguments, cwd=ROOT
        )


@contextlib.asynccontextmanager
async def office(config: Config | None = None, folder: Path | None = None) -> AsyncIterator[Office]:
    """In a folder of its own, or in that of an office before it."""
    own = folder is None
    folder = folder or Path(tempfile.mkdtemp(prefix="dispatcher-"))  # short, since it holds a socket
    place = Office(folder, config or Config())
    server = await asyncio.start_unix_server(place.accept, str(place.socket))
    try:
        yield place
    finally:
        server.close()
        place.hang_up()
        await asyncio.gather(*(asyncio.to_thread(thread.join, 10) for thread in place.threads))
        place.store.close()
        if own:
            shutil.rmtree(folder)


async def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()

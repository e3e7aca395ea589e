"""How a registered tool server is reached: a process spoken to line by line, or a URL; messages are bounded in size.

Knows no tools. The library behind it is an extra, so it is imported where it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loreloop.protocol.errors import BadRequest
from loreloop.store.rows import ToolServer

MAX_MESSAGE_BYTES = 16 << 20
TOO_LONG = f"it answered with over {MAX_MESSAGE_BYTES >> 20} MiB"
NOTED_BYTES = 8 << 10
LOG = logging.getLogger(__name__)
READ_SECONDS = 600.0  # requests have bounds of their own, none longer
END_SECONDS = 0.5  # for a process to end by itself, and again after it was told to
# Becomes the tool server, after it has left a watcher behind in its group, which is no child of it. The watcher kills
# the group, also what the tool server has started, when the pipe is closed whose other end this process alone holds:
# so also when this process is killed. As one of the group, it keeps the group's number from being another's.
WATCHED = """({ trap '' HUP INT TERM; read x </dev/fd/$0; kill -s KILL -- -$$; } <&- >&- 2>&- &); exec "$@" """


def check_url(url: str) -> str:
    """BadRequest where nothing could ever be asked there."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or not url.isprintable() or " " in url:
        raise BadRequest(f"{url[:200]!r} is no address of a tool server; give http://HOST:PORT/PATH or https://….")
    return url


def absolute(command: Sequence[str], folder: Path) -> tuple[str, ...]:
    """The command with those words made absolute that name something in `folder` by a path, or by a name with an
    ending: a tool server works in a folder of its own, where they would name nothing."""
    return tuple(
        os.path.abspath(folder / word)  # links stay: a virtual environment is known by the path of its python
        if (os.sep in word or (index and "." in word)) and not word.startswith("-") and (folder / word).exists()
        else word
        for index, word in enumerate(command)
    )


def link_to(server: ToolServer) -> AbstractAsyncContextManager[Any]:
    """A transport of the library's kind. What goes wrong is told to whoever asked, so it need not be logged as well."""
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    return _web(check_url(server.url)) if server.url else _process(server.name, server.command or ())


@asynccontextmanager
async def _web(url: str) -> AsyncIterator[Any]:
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    class Bounded(httpx2.AsyncByteStream):
        """The library bounds events of a stream, but reads other answers whole."""

        def __init__(self, stream: Any) -> None:
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            n_bytes = 0
            async for part in self.stream:
                n_bytes += len(part)
                if n_bytes > MAX_MESSAGE_BYTES:
                    raise httpx2.StreamError(TOO_LONG)
                yield part

        async def aclose(self) -> None:
            await self.stream.aclose()

    async def bound(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":  # a little may become a lot
            raise httpx2.StreamError("it answered compressed, which it was asked not to")
        if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            response.stream = Bounded(response.stream)

    async with (
        httpx2.AsyncClient(
            headers={"accept-encoding": "identity"},
            timeout=httpx2.Timeout(30.0, read=READ_SECONDS),
            event_hooks={"response": [bound]},
        ) as http,
        streamable_http_client(url, http_client=http, max_sse_event_size=MAX_MESSAGE_BYTES) as streams,
    ):
        yield streams


@asynccontextmanager
async def _process(name: str, command: Sequence[str]) -> AsyncIterator[Any]:
    """In place of the library's way, which reads lines of any length in time that grows with their square, and takes
    seconds to end a process."""
    import anyio

    with _lifeline() as watched:
        process = await _started(command, watched)
        incoming_writer, incoming = anyio.create_memory_object_stream[Any](0)
        outgoing, outgoing_reader = anyio.create_memory_object_stream[Any](0)
        messages = _Messages(process)
        tasks = [
            asyncio.create_task(each)
            for each in (messages.receive(incoming_writer), messages.send(outgoing_reader), messages.note(name))
        ]
        try:
            yield incoming, outgoing
        finally:
            with anyio.CancelScope(shield=True):
                for stream in (incoming, outgoing):
                    stream.close()
                await _ended(process)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)


@contextmanager
def _lifeline() -> Iterator[int]:
    """The end of a pipe that a watcher reads; nobody writes to the other one, and only this process holds it."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


async def _started(command: Sequence[str], watched: int) -> asyncio.subprocess.Process:
    from mcp.client.stdio import get_default_environment

    environment = get_default_environment()
    # In the environment that the tool server will have, which is a small part of this one.
    if shutil.which(command[0], path=environment.get("PATH")) is None:  # the shell would only say so where it is noted
        number = errno.EACCES if os.path.exists(command[0]) else errno.ENOENT  # there, but nothing to be executed
        raise OSError(number, os.strerror(number), command[0])
    return await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", WATCHED, str(watched), *command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=MAX_MESSAGE_BYTES,
        env=environment,
        start_new_session=True,
        pass_fds=(watched,),
    )


class _Messages:
    """Messages with a process, one a line. One that is too long ends the talk, and the request it answers hears why."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process, self.last_request_id = process, None  # one id is enough: requests come one after another

    async def receive(self, incoming: Any) -> None:
        import anyio
        from mcp.shared.message import SessionMessage
        from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter

        assert self.process.stdout
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async with incoming:
                while True:
                    try:
                        line = await self.process.stdout.readline()
                    except ValueError:
                        error = ErrorData(code=INTERNAL_ERROR, message=TOO_LONG)
                        await incoming.send(
                            SessionMessage(JSONRPCError(jsonrpc="2.0", id=self.last_request_id, error=error))
                        )
                        return
                    if not line:
                        return
                    try:
                        message: Any = SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
                    except ValueError as error:  # what a program prints besides
                        message = error
                    await incoming.send(message)

    async def note(self, name: str) -> None:
        """What it says besides goes into the log, in pieces of a bounded size."""
        assert self.process.stderr
        while piece := await self.process.stderr.read(NOTED_BYTES):
            for line in piece.decode(errors="replace").splitlines():
                LOG.info("tool server %s: %s", name, line)

    async def send(self, outgoing: Any) -> None:
        assert self.process.stdin
        with contextlib.suppress(OSError):
            async with outgoing:
                async for one in outgoing:
                    self.last_request_id = getattr(one.message, "id", self.last_request_id)
                    text = one.message.model_dump_json(by_alias=True, exclude_unset=True)
                    self.process.stdin.write(text.encode() + b"\n")
                    await self.process.stdin.drain()


async def _ended(process: asyncio.subprocess.Process) -> None:
    """A server ends when nobody speaks to it any more; one that does not is told to, with all that it has started."""
    assert process.stdin
    process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if await _exits(process):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    await _exits(process)


async def _exits(process: asyncio.subprocess.Process) -> bool:
    """Looked at again and again, because waiting for it would be for its pipes as well, which others may hold open."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + END_SECONDS
    while process.returncode is None and loop.time() < deadline:
        await asyncio.sleep(0.01)
    return process.returncode is not None
